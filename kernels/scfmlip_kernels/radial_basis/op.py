"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor

from ..checks import check_floats, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import differentiated_again, operator, transformed
from .formulas import basis_plain, gradients_plain, tangent_plain
from .kernel import launch_gradients, launch_radial_basis, launch_tangent


@operator("scfmlip::radial_basis")
def _radial_basis(
    x: Tensor, y: Tensor, frequencies: Tensor, scale: Tensor, reach: Tensor, p: Tensor, separate: bool
) -> Tensor:
    tensors = (x, y, frequencies.contiguous(), scale, reach, p)
    return launch_radial_basis(tensors, separate) if runs_triton(x) else basis_plain(*tensors, separate)


@_radial_basis.register_fake
def _(x, y, frequencies, scale, reach, p, separate):
    return x.new_empty((x.shape[0], frequencies.shape[0] + int(separate)))


@operator("scfmlip::radial_basis_backward")
def _radial_basis_backward(
    x: Tensor,
    y: Tensor,
    frequencies: Tensor,
    scale: Tensor,
    reach: Tensor,
    p: Tensor,
    grad: Tensor,
    separate: bool,
) -> tuple[Tensor, Tensor]:
    tensors = (x, y, frequencies.contiguous(), scale, reach, p)
    if runs_triton(x):
        d_x, d_y = launch_gradients(tensors, grad.contiguous(), separate)
        return d_x, d_y
    d_x, d_y, _ = gradients_plain(*tensors, grad, separate)
    return d_x, d_y


@_radial_basis_backward.register_fake
def _(x, y, frequencies, scale, reach, p, grad, separate):
    return x.new_empty(x.shape), y.new_empty(y.shape)


@operator("scfmlip::radial_basis_tangent")
def _radial_basis_tangent(
    x: Tensor,
    y: Tensor,
    frequencies: Tensor,
    scale: Tensor,
    reach: Tensor,
    p: Tensor,
    along_x: Tensor | None,
    along_y: Tensor | None,
    separate: bool,
) -> Tensor:
    tensors = (x, y, frequencies.contiguous(), scale, reach, p)
    along_x, along_y = (None if t is None else t.contiguous() for t in (along_x, along_y))
    if runs_triton(x):
        return launch_tangent(tensors, (along_x, along_y), separate)
    return tangent_plain(tensors, (along_x, along_y, None), separate)


@_radial_basis_tangent.register_fake
def _(x, y, frequencies, scale, reach, p, along_x, along_y, separate):
    return x.new_empty((x.shape[0], frequencies.shape[0] + int(separate)))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.separate = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 7
    tensors = ctx.saved_tensors
    if any(ctx.needs_input_grad[3:6]):
        raise NotImplementedError(
            "radial_basis: no derivatives in the scale, the cutoff and its power: detach them"
        )
    if transformed() or ctx.needs_input_grad[2]:  # training frequencies
        found = gradients_plain(*tensors, grad, ctx.separate)
    else:
        found = torch.ops.scfmlip.radial_basis_backward(*tensors, grad, ctx.separate)
    wanted = ctx.needs_input_grad[:3]
    return *(g if w else None for g, w in zip((*found, None)[:3], wanted, strict=True)), *(None,) * 4


def _backward_backward(ctx, v_x, v_y):
    wanted = ctx.needs_input_grad
    if v_x is None and v_y is None:
        return (None,) * 8
    *tensors, grad = ctx.saved_tensors
    if torch.is_grad_enabled() or any(wanted[:3]):
        x, y, frequencies, *numbers = tensors

        def gradients(x, y, frequencies, grad):
            return gradients_plain(x, y, frequencies, *numbers, grad, ctx.separate)[:2]

        found = differentiated_again(
            gradients, (x, y, frequencies, grad), (*wanted[:3], wanted[6]), (v_x, v_y)
        )
        return *found[:3], None, None, None, found[3], None
    d_grad = torch.ops.scfmlip.radial_basis_tangent(*tensors, v_x, v_y, ctx.separate)
    return *(None,) * 6, d_grad if wanted[6] else None, None


def _jvp(args, tangents):
    *tensors, separate = args
    if any(t is not None for t in tangents[3:6]):
        raise NotImplementedError(
            "radial_basis: no derivatives in the scale, the cutoff and its power: detach them"
        )
    return tangent_plain(tuple(tensors), tuple(tangents[:3]), separate)


_radial_basis.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
# under `torch.func` and forward mode its formulas run instead
_radial_basis_backward.register_autograd(_backward_backward, setup_context=_setup_context)
vmap_by_loop(_radial_basis_tangent, "radial_basis_tangent")
vmap_by_loop(_radial_basis, "radial_basis")
vmap_by_loop(_radial_basis_backward, "radial_basis_backward")


def radial_basis(
    x: Tensor,
    frequencies: Tensor,
    scale: Tensor,
    reach: Tensor,
    p: Tensor,
    y: Tensor | None = None,
    separate: bool = False,
) -> Tensor:
    r"""
    Bessel functions of lengths with a polynomial cutoff.

    ``f_n = a sin(w_n x) / x E(y / r)``, with ``E(u) = 1 - (p + 1) (p + 2) / 2 u^p + p (p + 2) u^(p + 1) -
    p (p + 1) / 2 u^(p + 2)`` below u = 1 and 0 beyond (Gasteiger et al., ICLR 2020, eqs. 7 and 8).

    Args:
        x: ``[n, 1]`` lengths, float32 or float64, above 0.
        frequencies: ``[n_basis]`` w, 1/length.
        scale: a, one number.
        reach: r, the cutoff, one number.
        p: Power of the cutoff, one integer of at least 1.
        y: ``[n, 1]`` lengths in the cutoff, if x is a transformed length; x if None.
        separate: Return E as one more column instead of multiplying by it.

    Returns:
        ``[n, n_basis]``, or ``[n, n_basis + 1]``. Differentiable any number of times in x, y and the
        frequencies.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import radial_basis
        >>> lengths, waves = torch.tensor([[1.0], [4.0]]), torch.tensor([0.5, 1.0]) * torch.pi
        >>> found = radial_basis(lengths, waves, torch.tensor(1.0), torch.tensor(2.0), torch.tensor(6))
        >>> [round(float(f), 3) for f in found[:, 0]]  # of a length below the cutoff, of one beyond
        [0.855, 0.0]
    """
    y = x if y is None else y
    x, y, frequencies, scale, reach = outside_autocast(x, y, frequencies, scale, reach)
    floats = {"x": x, "y": y, "frequencies": frequencies, "scale": scale, "reach": reach}
    check_tensors("radial_basis", **floats, p=p)
    check_floats("radial_basis", **floats)
    check_shape("radial_basis", "x", x, ("n", 1))
    check_shape("radial_basis", "y", floats["y"], (x.shape[0], 1))
    check_shape("radial_basis", "frequencies", frequencies, ("n_basis",))
    for name, tensor in (("scale", scale), ("reach", reach), ("p", p)):
        if tensor.numel() != 1:
            raise ValueError(f"radial_basis: {name} must be one number, got {list(tensor.shape)}")
    if p.is_floating_point():
        raise TypeError(f"radial_basis: p must be an integer, got {p.dtype}")
    return torch.ops.scfmlip.radial_basis(x, y, frequencies, scale, reach, p, separate)
