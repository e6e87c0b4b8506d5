"""
CPU path of mesh gathering: the transpose of each product in `mesh_spread.cpu`.

One matrix product multiplies a block's box of mesh values with the first-axis vectors of all its atoms; the
other two axes are contracted atom by atom.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lattice.monomials import monomials
from ..mesh.blocks import Layer, Places, find_places, wrapped
from ..threads import run_blocks


def _boxes(places: Places, values: Tensor, layer: Layer) -> Tensor:
    """``[n_blocks_y, n_blocks_z, n_channels, box_x, box_y, box_z]``, a view of a padded layer."""
    n_x, n_y, n_z = layer.shape
    mesh = values[:, layer.first_point : layer.first_point + n_x * n_y * n_z].view(-1, n_x, n_y, n_z)
    _, step_y, step_z = places.block
    box_x, box_y, box_z = places.box
    part = mesh.index_select(1, (layer.start + torch.arange(box_x)) % n_x)
    part = part.index_select(2, wrapped(layer.blocks[0], step_y, box_y, n_y))
    part = part.index_select(3, wrapped(layer.blocks[1], step_z, box_z, n_z))
    return part.unfold(2, box_y, step_y).unfold(3, box_z, step_z).permute(2, 3, 0, 1, 4, 5)


def _gather_layer(places: Places, values: Tensor, which: int, rank: int, out: Tensor) -> None:
    """Fill the rows of the layer's atoms in ``out [n_atoms, n_channels, n_monomials]``."""
    layer, (box_x, box_y, box_z) = places.layers[which], places.box
    boxes = _boxes(places, values, layer)
    count = rank + 1
    for number, slots, _ in places.chunks(which, rank):
        used = slots < len(places.atoms)
        mine = places.atoms[slots[used]]
        x, y, z = places.of(slots, rank)
        n, n_blocks = len(slots), len(number)
        rows, across = x.reshape(n_blocks, -1, box_x), z.mT
        at = boxes[number // layer.blocks[1], number % layer.blocks[1]]
        for channel in range(len(values)):
            planes = torch.bmm(rows, at[:, channel].reshape(n_blocks, box_x, -1))
            lines = torch.bmm(planes.view(n, count * box_y, box_z), across).view(n, count, box_y, count)
            found = [torch.bmm(y[:, : count - a], lines[:, a]) for a in range(count)]
            columns = [found[a][:, b, c] for a, b, c in monomials(rank)]
            out[mine, channel] = torch.stack(columns, 1)[used]


def mesh_gather_cpu(
    coords: Tensor,
    values: Tensor,
    atoms: Tensor,
    block_ptr: Tensor,
    shapes: Sequence[int],
    block: Sequence[int],
    order: int,
    rank: int,
) -> Tensor:
    """``[n_atoms, n_channels, n_monomials]``; arguments as in `mesh_gather`, on the CPU."""
    out = values.new_zeros((len(atoms), len(values), len(monomials(rank))))
    if not len(atoms) or not len(values):
        return out
    places = find_places(coords, atoms, block_ptr, shapes, block, order, rank, values.dtype)

    def work(own: None, which: int) -> None:
        _gather_layer(places, values, which, rank, out)

    run_blocks(range(len(places.layers)), lambda: None, work)
    return out
