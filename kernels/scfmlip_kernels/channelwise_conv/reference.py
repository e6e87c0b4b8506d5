"""Plain PyTorch definition of the channel-wise convolution; the tests' source of truth."""

import torch
from torch import Tensor

from .product import ChannelwiseProduct


def channelwise_conv_reference(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    sender: Tensor,
    receiver: Tensor,
    product: ChannelwiseProduct,
    matrix: Tensor | None = None,
) -> Tensor:
    """
    Compute and store every term of every edge, in float64; arguments as in `channelwise_conv`.

    Returns:
        ``[n_nodes, out_dim]``; the number of nodes is the number of rows of x.
    """
    x, y, weights = x.double(), y.double(), weights.double()
    if matrix is not None:
        weights = weights @ matrix.double()
    mul_ir = product.layout == "mul_ir"
    x_parts = x[sender].split([channels * dim for channels, dim in product.x], 1)
    y_parts = y.split(list(product.y), 1)
    w_parts = weights.split([channels for channels, _ in product.out], 1)
    sums = []
    for path, w in zip(product.paths, w_parts, strict=True):
        channels, dim = product.x[path.x]
        values = x_parts[path.x]
        values = values.unflatten(1, (channels, dim)) if mul_ir else values.unflatten(1, (dim, channels)).mT
        dense = x.new_zeros(dim, product.y[path.y], path.dim)
        for i, j, k, value in path.coefficients:
            dense[i, j, k] = value
        message = torch.einsum("ijk,ec,eci,ej->eck", dense, w, values, y_parts[path.y])
        message = message if mul_ir else message.mT
        zeros = x.new_zeros(len(x), *message.shape[1:])
        sums.append(zeros.index_add(0, receiver, message).flatten(1))
    return torch.cat(sums, 1)
