"""CPU path of the indexed linear map: one matrix product per species present."""

from itertools import pairwise

from torch import Tensor


def _groups(ptr: Tensor) -> list[tuple[int, int, int]]:
    """The species present, with their first and last position in the order."""
    bounds = ptr.tolist()
    return [(z, a, b) for z, (a, b) in enumerate(pairwise(bounds)) if b > a]


def indexed_linear_cpu(x: Tensor, weights: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """``x[n] @ weights[species of n]``; the order is that of `groups.sort_species`."""
    n_components, n_out = x.shape[1], weights.shape[2]
    out = x.new_empty((x.shape[0], n_components, n_out))
    groups = _groups(ptr)
    for z, first, last in groups:
        if len(groups) == 1:
            return (x.flatten(0, 1) @ weights[z]).view(out.shape)
        rows = order[first:last]
        found = x.index_select(0, rows).flatten(0, 1) @ weights[z]
        out.index_copy_(0, rows, found.view(last - first, n_components, n_out))
    return out


def indexed_linear_weights_cpu(x: Tensor, grad: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """``sum x[n]^T grad[n]`` over the rows of each species; 0 for absent species."""
    out = x.new_zeros((ptr.shape[0] - 1, x.shape[2], grad.shape[2]))
    for z, first, last in _groups(ptr):
        rows = order[first:last]
        out[z] = x.index_select(0, rows).flatten(0, 1).mT @ grad.index_select(0, rows).flatten(0, 1)
    return out
