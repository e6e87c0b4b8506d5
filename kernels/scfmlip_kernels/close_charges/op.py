"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import (
    launch_close_charges,
    launch_close_charges_backward,
    launch_close_charges_second,
)
from .plain import (
    close_charges_plain,
    gradients_plain,
    gradients_tangent_plain,
    second_plain,
    tangent_plain,
)


def _contiguous(*tensors: Tensor | None) -> tuple:
    return tuple(None if t is None else t.contiguous() for t in tensors)


@operator("scfmlip::close_charges")
def _close_charges(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    if runs_triton(charges):
        return launch_close_charges(*_contiguous(charges, update, targets, ptr))
    return close_charges_plain(charges, update, targets, ptr, index)


@_close_charges.register_fake
def _(charges, update, targets, ptr, index):
    return charges.new_empty(charges.shape), charges.new_empty((targets.shape[0], 4))


@operator("scfmlip::close_charges_backward")
def _close_charges_backward(
    grad: Tensor, update: Tensor, totals: Tensor, more: Tensor | None, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_triton(grad):
        return launch_close_charges_backward(*_contiguous(grad, more, update, totals, ptr))
    return gradients_plain(grad, more, update, totals, ptr, index)


@_close_charges_backward.register_fake
def _(grad, update, totals, more, ptr, index):
    return (
        grad.new_empty(grad.shape),
        update.new_empty(update.shape),
        grad.new_empty((totals.shape[0], 2)),
    )


@operator("scfmlip::close_charges_second")
def _close_charges_second(
    v_charges: Tensor | None,
    v_update: Tensor | None,
    v_targets: Tensor | None,
    grad: Tensor,
    update: Tensor,
    totals: Tensor,
    ptr: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    along = _contiguous(v_charges, v_update, v_targets)
    if runs_triton(grad):
        return launch_close_charges_second(along, *_contiguous(grad, update, totals, ptr))
    return second_plain(along, grad, update, totals, ptr, index)


@_close_charges_second.register_fake
def _(v_charges, v_update, v_targets, grad, update, totals, ptr, index):
    return tuple(t.new_empty(t.shape) for t in (grad, update, totals))


def _differentiated() -> bool:
    """Whether derivatives of what a backward pass gives may be asked for."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, more):
    if grad is None and more is None:
        return (None,) * 5
    charges, update, _, ptr, index, totals = ctx.saved_tensors
    grad = torch.zeros_like(charges) if grad is None else grad
    if more is not None and _differentiated():
        found = gradients_plain(grad, more, update, totals, ptr, index)
    else:
        found = torch.ops.scfmlip.close_charges_backward(grad, update, totals, more, ptr, index)
    wanted = ctx.needs_input_grad[:3]
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), None, None


def _jvp(args, tangents):
    totals = torch.ops.scfmlip.close_charges(*args)[1]
    return tangent_plain(args, totals, tangents)


def _backward_setup_context(ctx, inputs, output):
    grad, update, totals, _, ptr, index = inputs
    ctx.save_for_backward(grad, update, totals, ptr, index)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, *along):
    if all(v is None for v in along):
        return (None,) * 6
    if _differentiated():
        found = second_plain(along, *ctx.saved_tensors)
    else:
        found = torch.ops.scfmlip.close_charges_second(*along, *ctx.saved_tensors)
    wanted = ctx.needs_input_grad[:3]
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), None, None, None


def _backward_jvp(args, tangents):
    return gradients_tangent_plain((*args[:3], *args[4:]), tangents[:3])


_close_charges.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
_close_charges_backward.register_autograd(
    _backward_backward, setup_context=_backward_setup_context, jvp=_backward_jvp
)
vmap_by_loop(_close_charges, "close_charges")
vmap_by_loop(_close_charges_backward, "close_charges_backward")
vmap_by_loop(_close_charges_second, "close_charges_second")


def close_charges(charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """
    Multipoles of two spins whose charges add up to given totals.

    What is missing of a spin's total is distributed over the atoms of the system in proportion to weights:
    ``q_i + w_i / sum_j w_j (Q - sum_j q_j)``. Weights that add up to 0 are not normalised.

    Args:
        charges: ``[n_atoms, 2 m]`` float32 or float64, m multipoles of each spin, its charge first.
        update: ``[n_atoms, 2]`` the weights, or ``[n_atoms, 2 m + 2]`` what is added to the multipoles
            before, and the weights.
        targets: ``[n_systems, 2]`` charge of each spin.
        ptr: ``[n_systems + 1]`` int64 first atom of each system.
        index: ``[n_atoms]`` int64 system of each atom.

    Returns:
        ``[n_atoms, 2 m]``. Sums run in float64. Differentiable any number of times in ``charges``,
        ``update`` and ``targets``; first and second derivatives run in one launch each, others in PyTorch.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import close_charges
        >>> charges, weights = torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1], [3, 1]])
        >>> ptr, index = torch.tensor([0, 2]), torch.tensor([0, 0])
        >>> close_charges(charges, weights, torch.tensor([[1.0, 2.0]]), ptr, index)
        tensor([[0.6250, 1.0000],
                [0.3750, 1.0000]])
    """
    charges, update, targets = outside_autocast(charges, update, targets)
    floats = {"charges": charges, "update": update, "targets": targets}
    check_tensors("close_charges", **floats, ptr=ptr, index=index)
    check_floats("close_charges", **floats)
    check_shape("close_charges", "charges", charges, ("n_atoms", "2 m"))
    n_atoms, width = charges.shape
    if width % 2 or width == 0:
        raise ValueError(f"close_charges: charges must have m columns for each of two spins, got {width}")
    if update.ndim != 2 or update.shape[0] != n_atoms or update.shape[1] not in (2, width + 2):
        raise ValueError(
            f"close_charges: update must be [{n_atoms}, 2] or [{n_atoms}, {width + 2}], "
            f"got {list(update.shape)}"
        )
    check_shape("close_charges", "targets", targets, ("n_systems", 2))
    check_shape("close_charges", "ptr", ptr, (len(targets) + 1,))
    check_shape("close_charges", "index", index, (n_atoms,))
    check_index("close_charges", "index", index, len(targets), "systems")
    return torch.ops.scfmlip.close_charges(charges, update, targets, ptr, index)[0]
