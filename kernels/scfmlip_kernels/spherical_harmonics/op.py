"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import check_floats, check_rank, check_shape, check_tensors, outside_autocast
from ..columns import dense_rows
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import differentiated_again, operator, transformed
from .kernel import launch_gradient, launch_spherical_harmonics, launch_tangent
from .polynomials import gradient_plain, harmonics_plain, tangent_plain


@operator("scfmlip::spherical_harmonics")
def _spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    run = launch_spherical_harmonics if runs_triton(vectors) else harmonics_plain
    return run(dense_rows(vectors), l_max)


@_spherical_harmonics.register_fake
def _(vectors, l_max):
    return vectors.new_empty((vectors.shape[0], (l_max + 1) ** 2))


@operator("scfmlip::spherical_harmonics_backward")
def _spherical_harmonics_backward(vectors: Tensor, grad: Tensor, l_max: int) -> Tensor:
    run = launch_gradient if runs_triton(vectors) else gradient_plain
    return run(dense_rows(vectors), grad.contiguous(), l_max)


@_spherical_harmonics_backward.register_fake
def _(vectors, grad, l_max):
    return torch.empty_like(vectors, memory_format=torch.contiguous_format)


@operator("scfmlip::spherical_harmonics_tangent")
def _spherical_harmonics_tangent(vectors: Tensor, along: Tensor, l_max: int) -> Tensor:
    run = launch_tangent if runs_triton(vectors) else tangent_plain
    return run(dense_rows(vectors), along.contiguous(), l_max)


@_spherical_harmonics_tangent.register_fake
def _(vectors, along, l_max):
    return vectors.new_empty((vectors.shape[0], (l_max + 1) ** 2))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.l_max = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    (vectors,) = ctx.saved_tensors
    if transformed():
        return gradient_plain(vectors, grad, ctx.l_max), None
    return torch.ops.scfmlip.spherical_harmonics_backward(vectors, grad, ctx.l_max), None


def _backward_backward(ctx, along):
    vectors, grad = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled() or wanted[0]:

        def gradient(vectors, grad):
            return (gradient_plain(vectors, grad, ctx.l_max),)

        return *differentiated_again(gradient, (vectors, grad), wanted, (along,)), None
    return None, torch.ops.scfmlip.spherical_harmonics_tangent(vectors, along, ctx.l_max), None


def _jvp(args, tangents):
    vectors, l_max = args
    along, _ = tangents
    return tangent_plain(vectors, along, l_max)


_spherical_harmonics.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
# under `torch.func` and forward mode its formulas run instead
_spherical_harmonics_backward.register_autograd(_backward_backward, setup_context=_setup_context)
vmap_by_loop(_spherical_harmonics_tangent, "spherical_harmonics_tangent")
vmap_by_loop(_spherical_harmonics, "spherical_harmonics")
vmap_by_loop(_spherical_harmonics_backward, "spherical_harmonics_backward")


def spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    r"""
    Real spherical harmonics of the directions of vectors, in e3nn's order and axes.

    Columns are l = 0, then m = -1, 0, 1 of l = 1, ``sqrt(3) (x, y, z)``, and so on. Their mean square over
    the sphere is 1, e3nn's normalisation "component".

    Args:
        vectors: ``[n, 3]`` float32 or float64, of any length.
        l_max: Highest l.

    Returns:
        ``[n, (l_max + 1)^2]``; columns of l > 0 are 0 for vectors of length 0. Differentiable any number of
        times.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape, or a negative l_max.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import spherical_harmonics
        >>> up = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
        >>> (spherical_harmonics(up, 1) ** 2).round(decimals=9)
        tensor([[1., 0., 3., 0.]], dtype=torch.float64)
    """
    (vectors,) = outside_autocast(vectors)
    check_tensors("spherical_harmonics", vectors=vectors)
    check_floats("spherical_harmonics", vectors=vectors)
    check_shape("spherical_harmonics", "vectors", vectors, ("n", 3))
    check_rank("spherical_harmonics", l_max)
    return torch.ops.scfmlip.spherical_harmonics(vectors, l_max)
