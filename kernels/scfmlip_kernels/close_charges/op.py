"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import launch_close_charges, launch_close_charges_backward
from .plain import close_charges_plain, gradients_plain, tangent_plain


@operator("scfmlip::close_charges")
def _close_charges(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    if runs_triton(charges):
        given = charges.contiguous(), update.contiguous(), targets.contiguous(), ptr.contiguous()
        return launch_close_charges(*given)
    return close_charges_plain(charges, update, targets, ptr, index), charges.new_empty(0)


@_close_charges.register_fake
def _(charges, update, targets, ptr, index):
    size = (targets.shape[0], 4) if runs_triton(charges) else (0,)
    return charges.new_empty(charges.shape), charges.new_empty(size)


@operator("scfmlip::close_charges_backward")
def _close_charges_backward(
    grad: Tensor, update: Tensor, totals: Tensor, ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_close_charges_backward(grad.contiguous(), update.contiguous(), totals, ptr.contiguous())


@_close_charges_backward.register_fake
def _(grad, update, totals, ptr):
    return (
        grad.new_empty(grad.shape),
        update.new_empty(update.shape),
        grad.new_empty((totals.shape[0], 2)),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    *inputs, totals = ctx.saved_tensors
    if torch.is_grad_enabled() or not runs_triton(grad):
        found = gradients_plain(*inputs, grad)
    else:
        found = torch.ops.scfmlip.close_charges_backward(grad, inputs[1], totals, inputs[3])
    wanted = ctx.needs_input_grad[:3]
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), None, None


def _jvp(args, tangents):
    return tangent_plain(args, tangents), None


_close_charges.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
vmap_by_loop(_close_charges, "close_charges")
vmap_by_loop(_close_charges_backward, "close_charges_backward")


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
        ``[n_atoms, 2 m]``. Sums run in float64. Differentiable twice in ``charges``, ``update`` and
        ``targets``; first derivatives alone run in one launch, others in PyTorch.

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
