"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import check_floats, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from ..registry import constant_text
from .cpu import channelwise_conv_backward_cpu, channelwise_conv_cpu
from .edges import EdgeOrder
from .kernel import launch_channelwise_conv, launch_channelwise_conv_backward
from .kernel_radial import (
    fuses_radial,
    launch_channelwise_conv_radial,
    launch_channelwise_conv_radial_backward,
)
from .product import ChannelwiseProduct, product_of


@operator("scfmlip::channelwise_conv")
def _channelwise_conv(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    matrix: Tensor | None,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
    text: str,
) -> Tensor:
    product = product_of(text)
    x, y, weights = x.contiguous(), y.contiguous(), weights.contiguous()
    if runs_triton(x):
        tables = (sender, by_receiver, receiver_ptr, product)
        if matrix is not None and matrix.shape[0] and fuses_radial(x):
            return launch_channelwise_conv_radial(x, y, weights, matrix.contiguous(), *tables)
        return launch_channelwise_conv(x, y, weights if matrix is None else weights @ matrix, *tables)
    return channelwise_conv_cpu(x, y, weights, matrix, sender, by_receiver, receiver_ptr, product)


@_channelwise_conv.register_fake
def _(x, y, weights, matrix, sender, by_receiver, receiver_ptr, by_sender, sender_ptr, text):
    return x.new_empty((receiver_ptr.shape[0] - 1, product_of(text).out_dim))


@operator("scfmlip::channelwise_conv_backward")
def _channelwise_conv_backward(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    matrix: Tensor | None,
    grad: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
    text: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    product = product_of(text)
    x, y, weights, grad = x.contiguous(), y.contiguous(), weights.contiguous(), grad.contiguous()
    if not runs_triton(x):
        return channelwise_conv_backward_cpu(
            x, y, weights, matrix, grad, sender, by_receiver, receiver_ptr, product, wanted
        )
    tables = (sender, by_receiver, receiver_ptr, by_sender, sender_ptr, product)
    if matrix is not None and matrix.shape[0] and fuses_radial(x):
        return launch_channelwise_conv_radial_backward(
            x, y, weights, matrix.contiguous(), grad, *tables, wanted
        )
    w = weights if matrix is None else weights @ matrix
    wants = (wanted[0], wanted[1], wanted[2] or wanted[3])
    d_x, d_y, d_w = launch_channelwise_conv_backward(x, y, w, grad, *tables, wants)
    if matrix is None:
        return d_x, d_y, d_w, x.new_empty(0)
    d_weights = d_w @ matrix.mT if wanted[2] else x.new_empty(0)
    return d_x, d_y, d_weights, weights.mT @ d_w if wanted[3] else x.new_empty(0)


@_channelwise_conv_backward.register_fake
def _(x, y, weights, matrix, grad, *rest):
    inputs = (x, y, weights, matrix)
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if w and t is not None else x.new_empty(0)
        for t, w in zip(inputs, rest[-1], strict=True)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    x, y, weights, matrix, *tables = ctx.saved_tensors
    wanted = [bool(n) for n in ctx.needs_input_grad[:4]]
    found = torch.ops.scfmlip.channelwise_conv_backward(
        x, y, weights, matrix, grad, *tables, ctx.text, wanted
    )
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), *(None,) * 6


_channelwise_conv.register_autograd(_backward, setup_context=_setup_context)


def _setup_context_backward(ctx, inputs, output):
    *tensors, ctx.text, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, *cotangents):
    """
    Derivatives of the first derivatives, by the same two operators.

    Take the first derivatives of ``L(x, y, w, m; g) = sum out g``, each times its cotangent. Each product is
    L with the cotangent in place of the argument, so the total is a sum of forms of the same kind.
    """
    inputs, tables = list(ctx.saved_tensors[:5]), ctx.saved_tensors[5:]
    needed = [bool(n) for n in ctx.needs_input_grad[:5]]
    sums: list[Tensor | None] = [None] * 5

    def add(place: int, value: Tensor) -> None:
        before = sums[place]
        sums[place] = value if before is None else before + value

    for n, cotangent in enumerate(cotangents):
        if cotangent is None or not ctx.wanted[n]:
            continue
        form = [*inputs]
        form[n] = cotangent
        if needed[4]:
            add(4, torch.ops.scfmlip.channelwise_conv(*form[:4], *tables, ctx.text))
        # L is linear in the argument that the cotangent replaces: no derivative there
        wanted = [need and place != n for place, need in enumerate(needed[:4])]
        if any(wanted):
            found = torch.ops.scfmlip.channelwise_conv_backward(*form, *tables, ctx.text, wanted)
            for place, want in enumerate(wanted):
                if want:
                    add(place, found[place])
    return *sums, *(None,) * 7


def _jvp_backward(args, tangents):
    *tables, wanted = args[5:]
    sums: list[Tensor | None] = [None] * 4
    for n, tangent in enumerate(tangents[:5]):
        # the derivative in an argument does not depend on it
        mine = [want and place != n for place, want in enumerate(wanted)]
        if tangent is None or not any(mine):
            continue
        form = [*args[:n], tangent, *args[n + 1 : 5]]
        found = torch.ops.scfmlip.channelwise_conv_backward(*form, *tables, mine)
        for place, want in enumerate(mine):
            if want:
                before = sums[place]
                sums[place] = found[place] if before is None else before + found[place]
    return tuple(sums)


_channelwise_conv_backward.register_autograd(
    _double_backward, setup_context=_setup_context_backward, jvp=_jvp_backward
)


vmap_by_loop(_channelwise_conv, "channelwise_conv")
vmap_by_loop(_channelwise_conv_backward, "channelwise_conv_backward")


def channelwise_conv(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    edges: EdgeOrder,
    product: ChannelwiseProduct,
    matrix: Tensor | None = None,
) -> Tensor:
    r"""
    Messages of a channel-wise tensor product, summed at their receivers, without storing messages.

    ``out[n, p, k, c] = sum_(e to n) sum_ij C^p_ijk W[e, p, c] x[sender_e, i, c] y[e, j]`` for every path p
    of the product, with its components k and channels c. ``W`` is ``weights``, or ``weights @ matrix``.

    Args:
        x: Features of the senders, ``[n_nodes, x_dim]`` float32 or float64.
        y: Attributes of the edges, ``[n_edges, y_dim]``, same dtype.
        weights: ``[n_edges, weight_numel]``, or ``[n_edges, n_hidden]`` with ``matrix``.
        edges: From `sort_edges`.
        product: Segments, paths and coefficients.
        matrix: ``[n_hidden, weight_numel]``, or None.

    Returns:
        ``[n_nodes, out_dim]``, 0 at nodes without edges. Bitwise reproducible. Differentiable any number of
        times in ``x``, ``y``, ``weights`` and ``matrix``.

    Raises:
        TypeError: for a dtype that is not float32 or float64, or different ones.
        ValueError: for shapes that do not match, tensors on different devices, or an inconsistent product.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import ChannelwiseProduct, ProductPath, channelwise_conv, sort_edges
        >>> path = ProductPath(x=0, y=0, coefficients=((0, 0, 0, 1.0),), dim=1)
        >>> product = ChannelwiseProduct(x=((2, 1),), y=(1,), paths=(path,), layout="mul_ir")
        >>> edges = sort_edges(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0]), n_nodes=3)  # water
        >>> x = torch.tensor([[8.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # two channels per atom
        >>> channelwise_conv(x, torch.ones(4, 1), torch.ones(4, 2), edges, product)  # sums over neighbours
        tensor([[2., 0.],
                [8., 1.],
                [8., 1.]])
    """
    text = constant_text(product)
    x, y, weights, matrix = outside_autocast(x, y, weights, matrix)
    tensors = {"x": x, "y": y, "weights": weights}
    _check(tensors if matrix is None else {**tensors, "matrix": matrix}, edges, product)
    return torch.ops.scfmlip.channelwise_conv(x, y, weights, matrix, *edges.tables, text)


def _check(tensors, edges, product) -> None:
    if not isinstance(edges, EdgeOrder):
        raise TypeError(f"channelwise_conv: edges must come from sort_edges, got {type(edges).__name__}")
    check_tensors("channelwise_conv", **tensors, edges=edges.sender)
    check_floats("channelwise_conv", **tensors)
    n_edges, columns = edges.sender.shape[0], product.weight_numel
    shapes = {"x": (edges.n_senders, product.x_dim), "y": (n_edges, product.y_dim)}
    if "matrix" in tensors:
        check_shape("channelwise_conv", "matrix", tensors["matrix"], ("n_hidden", columns))
        columns = tensors["matrix"].shape[0]
    shapes["weights"] = (n_edges, columns)
    for name, shape in shapes.items():
        check_shape("channelwise_conv", name, tensors[name], shape)
