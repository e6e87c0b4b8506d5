"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..indexed_linear.groups import SpeciesOrder
from ..operators import operator
from ..registry import constant_text
from .kernel import launch_block_linear
from .kernel_weights import launch_block_linear_weights, uses_of_weights
from .maps import BlockMap, allocate, bias_gradient, count_rows, map_of, transposed
from .plain import block_linear_plain, block_linear_weights_plain


@operator("scfmlip::block_linear")
def _block_linear(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    ptr: Tensor | None,
    text: str,
) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    run = launch_block_linear if runs_triton(x) else block_linear_plain
    return run(x, weights.contiguous(), bias, order, ptr, text)


@_block_linear.register_fake
def _(x, weights, bias, order, ptr, text):
    linear = map_of(text)
    return allocate(count_rows(x, linear.x_parts), linear.out_dim, linear.out_parts, x)


@operator("scfmlip::block_linear_weights")
def _block_linear_weights(
    x: Tensor, grad: Tensor, order: Tensor | None, ptr: Tensor | None, text: str
) -> Tensor:
    # paths that share weights are added one after the other
    one_launch = runs_triton(x) and uses_of_weights(text)[1] <= 1
    run = launch_block_linear_weights if one_launch else block_linear_weights_plain
    return run(x.contiguous(), grad.contiguous(), order, ptr, text)


@_block_linear_weights.register_fake
def _(x, grad, order, ptr, text):
    return x.new_empty((map_of(text).n_weights,))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    x, weights, _, *order = ctx.saved_tensors
    d_x = d_weights = d_bias = None
    if ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.block_linear(grad, weights, None, *order, transposed(ctx.text))
    if ctx.needs_input_grad[1]:
        d_weights = torch.ops.scfmlip.block_linear_weights(x, grad, *order, ctx.text)
    if ctx.needs_input_grad[2]:
        d_bias = bias_gradient(grad, map_of(ctx.text))
    return d_x, d_weights, d_bias, None, None, None


def _jvp(args, tangents):
    x, weights, _, *rest = args
    x_t, weights_t, bias_t = tangents[:3]
    run = torch.ops.scfmlip.block_linear
    terms = [] if x_t is None else [run(x_t, weights, None, *rest)]
    if weights_t is not None:
        terms.append(run(x, weights_t, None, *rest))
    if bias_t is not None:
        terms.append(run(torch.zeros_like(x), weights, bias_t, *rest))
    return sum(terms[1:], terms[0])


def _weights_backward(ctx, cotangent):
    x, grad, *order = ctx.saved_tensors
    d_x = d_grad = None
    if ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.block_linear(grad, cotangent, None, *order, transposed(ctx.text))
    if ctx.needs_input_grad[1]:
        d_grad = torch.ops.scfmlip.block_linear(x, cotangent, None, *order, ctx.text)
    return d_x, d_grad, None, None, None


_block_linear.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
_block_linear_weights.register_autograd(_weights_backward, setup_context=_setup_context)
vmap_by_loop(_block_linear, "block_linear")
vmap_by_loop(_block_linear_weights, "block_linear_weights")


def _check_x(x: Tensor, linear: BlockMap) -> None:
    if not linear.x_parts:
        check_shape("block_linear", "x", x, ("n_rows", linear.x_dim))
    elif x.ndim != 1 or x.shape[0] % linear.x_dim:
        raise ValueError(
            f"block_linear: x must be a vector of matrices with {linear.x_dim} columns, got {list(x.shape)}"
        )


def parts_of(out: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """
    The matrices that a vector from `block_linear` holds.

    Args:
        out: ``[n_rows * sum(widths)]``.
        widths: Their numbers of columns, ``out_parts`` of the map.

    Example:
        >>> import torch
        >>> from scfmlip_kernels.block_linear.op import parts_of
        >>> [part.tolist() for part in parts_of(torch.arange(6), (1, 2))]
        [[[0], [1]], [[2, 3], [4, 5]]]
    """
    n_rows = len(out) // sum(widths)
    parts = out.split([n_rows * width for width in widths])
    return tuple(part.view(n_rows, width) for part, width in zip(parts, widths, strict=True))


def block_linear(
    x: Tensor,
    weights: Tensor,
    linear: BlockMap,
    species: SpeciesOrder | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""
    Linear maps between the channels of blocks of columns, all blocks at once.

    ``out[n, b, v, d] = sum_paths scale sum_u W[z_n, u, v] x[n, a, u, d]``: e3nn's ``Linear`` and its product
    with species, in one operator on rows as they are.

    Args:
        x: ``[n_rows, x_dim]`` float32 or float64, or a vector for a map with ``x_parts``.
        weights: ``[n_weights]``, same dtype.
        linear: Blocks and paths.
        species: From `sort_species`, for maps of several species.
        bias: ``[n_biases]`` what is added to the blocks that the map names; goes with its biases.

    Returns:
        ``[n_rows, out_dim]``, or a vector for a map with ``out_parts``. Bitwise reproducible. Differentiable
        any number of times in ``x``, ``weights`` and ``bias``.

    Raises:
        TypeError: for a dtype that is not float32 or float64, or different ones.
        ValueError: for shapes that do not match, an inconsistent map, or species that are missing.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import Block, BlockMap, BlockPath, block_linear
        >>> x, out = Block(0, channels=2, dim=3), Block(0, channels=1, dim=3)  # two vectors to one
        >>> path = BlockPath(x=0, out=0, first=0, strides=(0, 1, 1))
        >>> vectors = torch.tensor([[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])
        >>> block_linear(vectors, torch.tensor([1.0, 0.1]), BlockMap((x,), (out,), (path,), n_weights=2))
        tensor([[2., 4., 6.]])
    """
    text = constant_text(linear)
    x, weights, bias = outside_autocast(x, weights, bias)
    tensors = {"x": x, "weights": weights}
    if bias is not None:
        tensors["bias"] = bias
        check_shape("block_linear", "bias", bias, (linear.n_biases,))
    if (bias is None) != (linear.n_biases == 0):
        raise ValueError(f"block_linear: this map has {linear.n_biases} biases: pass as many, or none")
    check_tensors("block_linear", **tensors)
    check_floats("block_linear", **tensors)
    _check_x(x, linear)
    check_shape("block_linear", "weights", weights, (linear.n_weights,))
    if species is None:
        if linear.n_species != 1:
            raise ValueError(
                f"block_linear: this map has {linear.n_species} species: pass sort_species(index, n_species)"
            )
        return torch.ops.scfmlip.block_linear(x, weights, bias, None, None, text)
    check_tensors("block_linear", x=x, order=species.order, ptr=species.ptr)
    n_rows = count_rows(x, linear.x_parts)
    check_shape("block_linear", "species.order", species.order, (n_rows,))
    check_shape("block_linear", "species.ptr", species.ptr, (linear.n_species + 1,))
    check_index("block_linear", "species.order", species.order, n_rows, "rows")
    return torch.ops.scfmlip.block_linear(x, weights, bias, *species, text)
