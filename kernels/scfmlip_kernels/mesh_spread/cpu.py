"""
CPU path of mesh spreading: boxes of mesh points as matrix products over the atoms of a block.

With the padded vectors X, Y, Z of `mesh.blocks` a box is ``sum_i sum_a X^(a)_i (x) P_ia``, where the plane
``P_ia = sum_bc m_iabc Y^(b)_i (x) Z^(c)_i`` is made from the multipoles: one matrix product per block. Boxes
are added layer by layer in a fixed order, so results do not depend on the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lattice.monomials import rank_of_count
from ..mesh.blocks import Layer, Places, find_places, folded, monomial_tree
from ..threads import run_blocks


def _planes(m: Tensor, y: Tensor, z: Tensor, rank: int) -> Tensor:
    """``[n, rank + 1, box_y, box_z]`` of multipoles ``[n, n_monomials]``."""
    planes = y.new_empty((len(m), rank + 1, y.shape[2], z.shape[2]))
    for a, of_a in monomial_tree(rank).items():
        for b, of_b in of_a.items():
            line = None
            for c, place in of_b:
                term = m[:, place, None] * z[:, c]
                line = term if line is None else line.add_(term)
            assert line is not None
            if b == 0:
                torch.mul(y[:, 0, :, None], line[:, None], out=planes[:, a])
            else:
                planes[:, a].addcmul_(y[:, b, :, None], line[:, None])
    return planes


def _spread_layer(places: Places, moments: Tensor, which: int, rank: int) -> Tensor:
    """``[n_channels, box_x, n_y, n_z]``; ``moments`` sorted, with a row of zeros at the end."""
    layer, (box_x, box_y, box_z) = places.layers[which], places.box
    n_channels = moments.shape[1]
    boxes = moments.new_zeros((layer.blocks[0] * layer.blocks[1], n_channels, box_x, box_y * box_z))
    for number, slots, again in places.chunks(which, rank):
        n = len(number)
        x, y, z = places.of(slots, rank)
        rows = x.reshape(n, -1, box_x).mT
        m = moments.index_select(0, slots)
        for channel in range(n_channels):
            found = torch.bmm(rows, _planes(m[:, channel], y, z, rank).view(n, -1, box_y * box_z))
            if again:
                found += boxes[number, channel]
            boxes[number, channel] = found
    out = boxes.view(*layer.blocks, n_channels * box_x, box_y, box_z)
    out = folded(out, (places.block[1], places.block[2]), layer.shape[1:])
    return out.unflatten(0, (n_channels, box_x))


def mesh_spread_cpu(
    coords: Tensor,
    moments: Tensor,
    atoms: Tensor,
    block_ptr: Tensor,
    shapes: Sequence[int],
    block: Sequence[int],
    order: int,
    n_points: int,
) -> Tensor:
    """``[n_channels, n_points]``; arguments as in `mesh_spread`, on the CPU."""
    out = moments.new_zeros((moments.shape[1], n_points))
    if not len(atoms) or not moments.shape[1]:
        return out
    rank = rank_of_count(moments.shape[2])
    places = find_places(coords, atoms, block_ptr, shapes, block, order, rank, moments.dtype)
    rows = torch.cat((moments[places.atoms], moments.new_zeros((1, *moments.shape[1:]))))

    def work(own: None, which: int) -> tuple[Layer, Tensor]:
        return places.layers[which], _spread_layer(places, rows, which, rank)

    def finish(found: tuple[Layer, Tensor]) -> None:
        layer, part = found
        n_x, n_y, n_z = layer.shape
        mesh = out[:, layer.first_point : layer.first_point + n_x * n_y * n_z].view(-1, n_x, n_y, n_z)
        for j in range(part.shape[1]):
            mesh[:, (layer.start + j) % n_x] += part[:, j]

    run_blocks(range(len(places.layers)), lambda: None, work, finish)
    return out
