"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import check_floats, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import launch_cell_inverse, launch_cell_inverse_backward


@operator("scfmlip::cell_inverse")
def _cell_inverse(cell: Tensor) -> Tensor:
    cell = cell.contiguous()
    if runs_triton(cell):
        return launch_cell_inverse(cell)
    a, b, c = cell.unbind(-2)
    faces = torch.stack([torch.linalg.cross(*pair) for pair in ((b, c), (c, a), (a, b))], -1)
    volume = (a * faces[..., 0]).sum(-1, keepdim=True)
    return torch.cat(((faces / volume[..., None]).flatten(1), volume), 1)


@_cell_inverse.register_fake
def _(cell):
    return cell.new_empty((cell.shape[0], 10))


def _gradient(both: Tensor, grad: Tensor) -> Tensor:
    turned = both[:, :9].unflatten(1, (3, 3)).mT
    g = grad[:, :9].unflatten(1, (3, 3))
    return (grad[:, 9:] * both[:, 9:])[..., None] * turned - turned @ g @ turned


@operator("scfmlip::cell_inverse_backward")
def _cell_inverse_backward(both: Tensor, grad: Tensor) -> Tensor:
    if runs_triton(both):
        return launch_cell_inverse_backward(both.contiguous(), grad.contiguous())
    return _gradient(both, grad)


@_cell_inverse_backward.register_fake
def _(both, grad):
    return grad.new_empty((grad.shape[0], 3, 3))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx, grad):
    cell, both = ctx.saved_tensors
    if torch.is_grad_enabled():  # differentiated again
        return _gradient(torch.ops.scfmlip.cell_inverse(cell), grad)
    return torch.ops.scfmlip.cell_inverse_backward(both, grad)


def _jvp(args, tangents):
    both = torch.ops.scfmlip.cell_inverse(args[0])
    inverse = both[:, :9].unflatten(1, (3, 3))
    turned = inverse @ tangents[0]
    trace = turned.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    return torch.cat((-(turned @ inverse).flatten(1), trace * both[:, 9:]), 1)


_cell_inverse.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
vmap_by_loop(_cell_inverse, "cell_inverse")
vmap_by_loop(_cell_inverse_backward, "cell_inverse_backward")


def cell_inverse(cell: Tensor) -> tuple[Tensor, Tensor]:
    """
    Inverses and determinants of 3 x 3 matrices, with no check that a GPU's host would wait for.

    Args:
        cell: ``[n, 3, 3]`` float32 or float64.

    Returns:
        ``[n, 3, 3]`` and ``[n]``. Differentiable any number of times.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import cell_inverse
        >>> inverse, volume = cell_inverse(2.0 * torch.eye(3)[None])
        >>> inverse[0, 0].tolist(), volume.tolist()
        ([0.5, 0.0, 0.0], [8.0])
    """
    check_tensors("cell_inverse", cell=cell)
    check_floats("cell_inverse", cell=cell)
    check_shape("cell_inverse", "cell", cell, ("n", 3, 3))
    both = torch.ops.scfmlip.cell_inverse(cell)
    inverse, volume = both.split((9, 1), 1)
    return inverse.unflatten(1, (3, 3)), volume[:, 0]
