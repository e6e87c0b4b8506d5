"""Operator registration: dispatch, fake tensors, derivatives, public functions."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import launch_slab_cell, launch_slab_strengths
from .plain import (
    slab_cell_gradient_plain,
    slab_cell_plain,
    slab_strengths_gradient_plain,
    slab_strengths_plain,
)


@operator("scfmlip::slab_cell")
def _slab_cell(cell: Tensor, axis: Tensor, factor: Tensor) -> Tensor:
    given = cell.contiguous(), axis.contiguous(), factor.contiguous()
    return launch_slab_cell(*given) if runs_triton(cell) else slab_cell_plain(*given)


@_slab_cell.register_fake
def _(cell, axis, factor):
    return cell.new_empty(cell.shape)


@operator("scfmlip::slab_cell_backward")
def _slab_cell_backward(cell: Tensor, axis: Tensor, factor: Tensor, grad: Tensor) -> Tensor:
    given = cell.contiguous(), axis.contiguous(), factor.contiguous(), grad.contiguous()
    return launch_slab_cell(*given)


@_slab_cell_backward.register_fake
def _(cell, axis, factor, grad):
    return cell.new_empty(cell.shape)


@operator("scfmlip::slab_strengths")
def _slab_strengths(inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor) -> Tensor:
    given = inverse.contiguous(), volume.contiguous(), axis.contiguous(), weight.contiguous()
    return launch_slab_strengths(*given)[0] if runs_triton(inverse) else slab_strengths_plain(*given)


@_slab_strengths.register_fake
def _(inverse, volume, axis, weight):
    return inverse.new_empty((inverse.shape[0], 8))


@operator("scfmlip::slab_strengths_backward")
def _slab_strengths_backward(
    inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    given = inverse.contiguous(), volume.contiguous(), axis.contiguous(), weight.contiguous()
    d_inverse, d_volume = launch_slab_strengths(*given, grad.contiguous())
    assert d_volume is not None
    return d_inverse, d_volume


@_slab_strengths_backward.register_fake
def _(inverse, volume, axis, weight, grad):
    return inverse.new_empty(inverse.shape), volume.new_empty(volume.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _refuse(name: str, what: str) -> None:
    raise NotImplementedError(f"{name}: no derivatives in {what}: detach it")


def _cell_backward(ctx, grad):
    if ctx.needs_input_grad[2]:
        _refuse("slab_cell", "the factors")
    kernel = not torch.is_grad_enabled() and runs_triton(grad)
    run = torch.ops.scfmlip.slab_cell_backward if kernel else slab_cell_gradient_plain
    return run(*ctx.saved_tensors, grad), None, None


def _cell_jvp(args, tangents):
    cell, axis, factor = args
    if tangents[2] is not None:
        _refuse("slab_cell", "the factors")
    # the derivative is a matrix of nine columns, which the gradient gives row by row
    return _along(lambda g: (slab_cell_gradient_plain(cell, axis, factor, g),), cell, (tangents[0],), 9)


def _strengths_backward(ctx, grad):
    if ctx.needs_input_grad[3]:
        _refuse("slab_strengths", "the weights")
    kernel = not torch.is_grad_enabled() and runs_triton(grad)
    run = torch.ops.scfmlip.slab_strengths_backward if kernel else slab_strengths_gradient_plain
    d_inverse, d_volume = run(*ctx.saved_tensors, grad)
    return d_inverse, d_volume, None, None


def _strengths_jvp(args, tangents):
    inverse, volume, axis, weight = args
    if tangents[3] is not None:
        _refuse("slab_strengths", "the weights")
    like = inverse.new_zeros((len(inverse), 8))
    return _along(
        lambda g: slab_strengths_gradient_plain(inverse, volume, axis, weight, g), like, tangents[:2], 8
    )


def _along(gradients, like, tangents, size):
    """Derivatives of the outputs of each system along tangents, from the gradients of each output."""
    columns = []
    for k in range(size):
        unit = torch.zeros_like(like).flatten(1)
        unit[:, k] = 1
        found = gradients(unit.view(like.shape))
        pairs = [(g, t) for g, t in zip(found, tangents, strict=True) if t is not None]
        columns.append(sum((g * t).flatten(1).sum(1) if g.ndim > 1 else g * t for g, t in pairs))
    return torch.stack(columns, 1).view(like.shape)


_slab_cell.register_autograd(_cell_backward, setup_context=_setup_context, jvp=_cell_jvp)
_slab_strengths.register_autograd(_strengths_backward, setup_context=_setup_context, jvp=_strengths_jvp)
for _definition, _name in (
    (_slab_cell, "slab_cell"),
    (_slab_cell_backward, "slab_cell_backward"),
    (_slab_strengths, "slab_strengths"),
    (_slab_strengths_backward, "slab_strengths_backward"),
):
    vmap_by_loop(_definition, _name)


def slab_cell(cell: Tensor, axis: Tensor, factor: Tensor) -> Tensor:
    """
    Cells whose open vector stands on the two others.

    Args:
        cell: ``[n, 3, 3]`` float32 or float64, rows are lattice vectors.
        axis: ``[n]`` int64 open direction.
        factor: ``[n]`` length of the new vector along the cross product of the next two; 0 leaves a cell as
            it is.

    Returns:
        ``[n, 3, 3]``. Differentiable twice in ``cell``; first derivatives alone run in one launch.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import slab_cell
        >>> slab_cell(torch.eye(3)[None], torch.tensor([2]), torch.tensor([20.0]))[0, 2]
        tensor([ 0.,  0., 20.])
    """
    check_tensors("slab_cell", cell=cell, axis=axis, factor=factor)
    check_floats("slab_cell", cell=cell, factor=factor)
    check_shape("slab_cell", "cell", cell, ("n", 3, 3))
    check_shape("slab_cell", "factor", factor, (cell.shape[0],))
    check_shape("slab_cell", "axis", axis, (cell.shape[0],))
    check_index("slab_cell", "axis", axis, 3, "axes")
    return torch.ops.scfmlip.slab_cell(cell, axis, factor)


def slab_strengths(inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor) -> Tensor:
    """
    What the correction of a slab's sum over images is multiplied by.

    Args:
        inverse: ``[n, 3, 3]`` float32 or float64 inverse cells.
        volume: ``[n]`` their volumes.
        axis: ``[n]`` int64 open direction; the normal is along that column of the inverse.
        weight: ``[n]`` strength times the volume; 0 for systems that are not slabs.

    Returns:
        ``[n, 8]``: ``s = weight / volume``, ``s L^2 / 12`` with L the height of the cell, and s times the
        products xx, xy, xz, yy, yz, zz of the unit normal. Differentiable twice in ``inverse`` and
        ``volume``; first derivatives alone run in one launch.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match.

    Example:
        >>> import torch
        >>> from scfmlip_kernels.slab_cell.op import slab_strengths
        >>> inverse, one = torch.diag(torch.tensor([1.0, 1.0, 0.5]))[None], torch.ones(1)
        >>> slab_strengths(inverse, 2 * one, torch.tensor([2]), 4 * one)[0, [0, 7]]
        tensor([2., 2.])
    """
    floats = {"inverse": inverse, "volume": volume, "weight": weight}
    check_tensors("slab_strengths", **floats, axis=axis)
    check_floats("slab_strengths", **floats)
    check_shape("slab_strengths", "inverse", inverse, ("n", 3, 3))
    for name, tensor in (("volume", volume), ("weight", weight), ("axis", axis)):
        check_shape("slab_strengths", name, tensor, (inverse.shape[0],))
    check_index("slab_strengths", "axis", axis, 3, "axes")
    return torch.ops.scfmlip.slab_strengths(inverse, volume, axis, weight)
