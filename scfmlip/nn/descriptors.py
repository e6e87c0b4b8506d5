"""Make descriptions of our operators from objects of other libraries."""

from __future__ import annotations

from typing import Any

import torch

from scfmlip_kernels import ChannelwiseProduct, ProductPath


def channelwise_product(product: Any) -> ChannelwiseProduct | None:
    """
    Describe an e3nn tensor product as a convolution.

    Args:
        product: An ``e3nn.o3.TensorProduct``.

    Returns:
        The description; None for other connections than channel by channel ("uvu" with one channel on the
        right), for a product that owns its weights, or for outputs shared by several paths.
    """
    from e3nn import o3

    irreps = product.irreps_in1, product.irreps_in2, product.irreps_out
    if product.shared_weights or any(mul != 1 for mul, _ in irreps[1]):
        return None
    if [ins.i_out for ins in product.instructions] != list(range(len(irreps[2]))):
        return None
    # irreps without channels have no columns, weights or outputs
    filled = [i for i, (mul, _) in enumerate(irreps[0]) if mul > 0]
    paths = []
    for ins in product.instructions:
        x, y, out = irreps[0][ins.i_in1], irreps[1][ins.i_in2], irreps[2][ins.i_out]
        if ins.connection_mode != "uvu" or not ins.has_weight or out.mul != x.mul:
            return None
        if x.mul == 0:
            continue
        table = o3.wigner_3j(x.ir.l, y.ir.l, out.ir.l, dtype=torch.float64) * ins.path_weight
        entries = tuple((*ijk, float(table[ijk])) for ijk in map(tuple, torch.nonzero(table).tolist()))
        paths.append(ProductPath(filled.index(ins.i_in1), ins.i_in2, entries, out.ir.dim))
    x_segments = tuple((irreps[0][i].mul, irreps[0][i].ir.dim) for i in filled)
    return ChannelwiseProduct(x_segments, tuple(ir.dim for _, ir in irreps[1]), tuple(paths))
