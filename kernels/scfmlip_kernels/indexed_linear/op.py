"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .cpu import indexed_linear_cpu, indexed_linear_weights_cpu
from .groups import check_species, sort_species
from .kernel import launch_indexed_linear, launch_indexed_linear_weights


@operator("scfmlip::indexed_linear")
def _indexed_linear(x: Tensor, weights: Tensor, index: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    if runs_triton(x):
        return launch_indexed_linear(x, weights, order, ptr)
    return indexed_linear_cpu(x, weights, order, ptr)


@_indexed_linear.register_fake
def _(x, weights, index, order, ptr):
    return x.new_empty((x.shape[0], x.shape[1], weights.shape[2]))


@operator("scfmlip::indexed_linear_weights")
def _indexed_linear_weights(x: Tensor, grad: Tensor, index: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    if runs_triton(x):
        return launch_indexed_linear_weights(x, grad, order, ptr)
    return indexed_linear_weights_cpu(x, grad, order, ptr)


@_indexed_linear_weights.register_fake
def _(x, grad, index, order, ptr):
    return x.new_empty((ptr.shape[0] - 1, x.shape[2], grad.shape[2]))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, weights, *tables = ctx.saved_tensors
    d_x = d_weights = None
    if ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.indexed_linear(grad, weights.mT, *tables)
    if ctx.needs_input_grad[1]:
        d_weights = torch.ops.scfmlip.indexed_linear_weights(x, grad, *tables)
    return d_x, d_weights, None, None, None


def _weights_backward(ctx, cotangent):
    x, grad, *tables = ctx.saved_tensors
    d_x = d_grad = None
    if ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.indexed_linear(grad, cotangent.mT, *tables)
    if ctx.needs_input_grad[1]:
        d_grad = torch.ops.scfmlip.indexed_linear(x, cotangent, *tables)
    return d_x, d_grad, None, None, None


_indexed_linear.register_autograd(_backward, setup_context=_setup_context)
_indexed_linear_weights.register_autograd(_weights_backward, setup_context=_setup_context)


def indexed_linear(x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
    r"""
    Multiply each row by the matrix of its species.

    ``out[n, i] = x[n, i] @ weights[index_n]``: one matrix product per species replaces a tensor product with
    one-hot attributes.

    Args:
        x: ``[n_rows, n_components, n_in]`` float32 or float64.
        weights: ``[n_species, n_in, n_out]``, same dtype.
        index: ``[n_rows]`` int64, species of each row.

    Returns:
        ``[n_rows, n_components, n_out]``. Bitwise reproducible. Differentiable any number of times in ``x``
        and ``weights``.

    Raises:
        TypeError: for a dtype that is not float32 or float64, different ones, or an index not int64.
        ValueError: for shapes that do not match, tensors on different devices, and on a CPU for species out
            of range.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import indexed_linear
        >>> x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]).view(3, 1, 2)
        >>> weights = torch.stack((torch.eye(2), 10 * torch.eye(2)))  # one matrix for each of two species
        >>> indexed_linear(x, weights, torch.tensor([0, 1, 1])).view(3, 2)
        tensor([[ 1.,  2.],
                [10., 20.],
                [30., 40.]])
    """
    x, weights = outside_autocast(x, weights)
    shapes = {"x": ("n_rows", "n_components", "n_in"), "weights": ("n_species", "n_in", "n_out")}
    check_species("indexed_linear", {"x": x, "weights": weights}, index, shapes)
    if x.shape[2] != weights.shape[1]:
        raise ValueError(f"indexed_linear: x has {x.shape[2]} columns, weights {weights.shape[1]} rows")
    order, ptr = sort_species(index, weights.shape[0])
    return torch.ops.scfmlip.indexed_linear(x, weights, index, order, ptr)


vmap_by_loop(_indexed_linear, "indexed_linear")
vmap_by_loop(_indexed_linear_weights, "indexed_linear_weights")
