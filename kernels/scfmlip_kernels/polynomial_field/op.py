"""Operator registration: dispatch, fake tensors, derivatives, public functions."""

import torch
from torch import Tensor

from ..checks import check_rank, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..lattice.directions import raised, scaled_forces, shifted_along
from ..lattice.monomials import monomial_count, rank_of_count
from ..operators import operator
from .kernel import launch_polynomial_field, launch_polynomial_moments
from .plain import field_plain, moments_plain


@operator("scfmlip::polynomial_field")
def _polynomial_field(r: Tensor, c: Tensor, rank: int) -> Tensor:
    run = launch_polynomial_field if runs_triton(c) else field_plain
    return run(r.contiguous(), c.contiguous(), rank)


@_polynomial_field.register_fake
def _(r, c, rank):
    return c.new_empty((*c.shape[:2], monomial_count(rank)))


@operator("scfmlip::polynomial_moments")
def _polynomial_moments(r: Tensor, p: Tensor) -> Tensor:
    run = launch_polynomial_moments if runs_triton(p) else moments_plain
    return run(r.contiguous(), p.contiguous())


@_polynomial_moments.register_fake
def _(r, p):
    return p.new_empty((*p.shape[:2], 10))


def _setup_field(ctx, inputs, output):
    r, c, _ = inputs
    ctx.save_for_backward(r, c)


def _field_backward(ctx, grad):
    r, c = ctx.saved_tensors
    d_r = d_c = None
    if ctx.needs_input_grad[0]:
        rank = rank_of_count(grad.shape[-1])
        d_r = scaled_forces(grad, torch.ops.scfmlip.polynomial_field(r, c, rank + 1), 1.0)
    if ctx.needs_input_grad[1]:
        d_c = torch.ops.scfmlip.polynomial_moments(r, grad)
    return d_r, d_c, None


def _field_jvp(args, tangents):
    r, c, rank = args
    along_r, along_c, _ = tangents
    found = None
    if along_r is not None:
        found = shifted_along(torch.ops.scfmlip.polynomial_field(r, c, rank + 1), along_r, rank)
    if along_c is not None:
        more = torch.ops.scfmlip.polynomial_field(r, along_c, rank)
        found = more if found is None else found + more
    return found


def _setup_moments(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _moments_backward(ctx, grad):
    r, p = ctx.saved_tensors
    rank = rank_of_count(p.shape[-1])
    field = torch.ops.scfmlip.polynomial_field(r, grad, rank + 1 if ctx.needs_input_grad[0] else rank)
    d_r = scaled_forces(p, field, 1.0) if ctx.needs_input_grad[0] else None
    return d_r, field[..., : p.shape[-1]]


def _moments_jvp(args, tangents):
    r, p = args
    along_r, along_p = tangents
    found = None
    if along_r is not None:
        found = torch.ops.scfmlip.polynomial_moments(r, raised(p, along_r))
    if along_p is not None:
        more = torch.ops.scfmlip.polynomial_moments(r, along_p)
        found = more if found is None else found + more
    return found


_polynomial_field.register_autograd(_field_backward, setup_context=_setup_field, jvp=_field_jvp)
_polynomial_moments.register_autograd(_moments_backward, setup_context=_setup_moments, jvp=_moments_jvp)
vmap_by_loop(_polynomial_field, "polynomial_field")
vmap_by_loop(_polynomial_moments, "polynomial_moments")


def _check(op: str, name: str, r: Tensor, values: Tensor, size: int | str) -> None:
    check_tensors(op, r=r, **{name: values})
    check_shape(op, "r", r, ("n_atoms", 3))
    check_shape(op, name, values, (r.shape[0], "n_channels", size))
    for key, tensor in (("r", r), (name, values)):
        if tensor.dtype != torch.float64:
            raise ValueError(f"{op}: {key} must be float64, got {tensor.dtype}: convert it with .double()")


def polynomial_field(r: Tensor, c: Tensor, rank: int) -> Tensor:
    """
    Quadratic polynomials at points, and their derivatives.

    ``V(r) = c_0 + a.r + r.B r / 2`` with ``c = [c_0, a_x, a_y, a_z, B_xx, B_xy, B_xz, B_yy, B_yz, B_zz]``.

    Args:
        r: ``[n_atoms, 3]`` float64 points.
        c: ``[n_atoms, n_channels, 10]`` float64, the polynomials of each point.
        rank: Highest derivative.

    Returns:
        ``[n_atoms, n_channels, 1 | 4 | 10 | ...]`` in the order of `lattice.monomials`. Differentiable any
        number of times.

    Raises:
        ValueError: for shapes or dtypes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import polynomial_field
        >>> c = torch.zeros(1, 1, 10, dtype=torch.float64)
        >>> c[0, 0, 0], c[0, 0, 4] = 1.0, 2.0  # 1 + x^2
        >>> polynomial_field(torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64), c, 1).flatten().tolist()
        [10.0, 6.0, 0.0, 0.0]
    """
    check_rank("polynomial_field", rank)
    _check("polynomial_field", "c", r, c, 10)
    return torch.ops.scfmlip.polynomial_field(r, c, rank)


def polynomial_moments(r: Tensor, p: Tensor) -> Tensor:
    """
    Moments of point multipoles about the origin, one point at a time: the adjoint of `polynomial_field`.

    Args:
        r: ``[n_atoms, 3]`` float64 points.
        p: ``[n_atoms, n_channels, 1 | 4 | 10]`` float64 multipoles in the order of `lattice.monomials`.

    Returns:
        ``[n_atoms, n_channels, 10]`` ``[q, q r + d, q x^2 / 2 + d_x x + c_xx, q x y + d_x y + d_y x + c_xy,
        ...]``. Differentiable any number of times.

    Raises:
        ValueError: for shapes or dtypes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import polynomial_moments
        >>> charge = torch.ones(1, 1, 1, dtype=torch.float64)
        >>> place = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
        >>> polynomial_moments(place, charge)[0, 0, :5].tolist()
        [1.0, 3.0, 0.0, 0.0, 4.5]
    """
    _check("polynomial_moments", "p", r, p, "n_monomials")
    if p.shape[-1] not in (1, 4, 10):
        raise ValueError(f"polynomial_moments: p must have 1, 4 or 10 columns, got {list(p.shape)}")
    return torch.ops.scfmlip.polynomial_moments(r, p)
