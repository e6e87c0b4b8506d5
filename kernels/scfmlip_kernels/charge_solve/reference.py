"""The same minimum from one dense bordered system each, in float64."""

import itertools

import torch
from torch import Tensor


def charge_solve_reference(
    matrices: Tensor, source: Tensor, totals: Tensor, atom_ptr: Tensor, constrained: bool
) -> tuple[Tensor, Tensor]:
    """
    State and slope of every system; arguments as `charge_solve`.

    ``[A 1; 1^T 0] (s, -mu) = (-b, Q)``; the slope is ``A s + b``.
    """
    states, slopes = [], []
    begin = 0
    for system, (first, last) in enumerate(itertools.pairwise(atom_ptr.tolist())):
        n = last - first
        matrix = matrices[begin : begin + n * n].view(n, n).double()
        begin += n * n
        b = source[first:last].double()
        if constrained and n:
            ones = torch.ones((n, 1), dtype=torch.float64, device=b.device)
            corner = ones.new_zeros((1, 1))
            bordered = torch.cat((torch.cat((matrix, ones), 1), torch.cat((ones.T, corner), 1)))
            right = torch.cat((-b, totals[system : system + 1].double()))
            state = torch.linalg.solve(bordered, right)[:n]
        else:
            state = torch.linalg.solve(matrix, -b)
        states.append(state)
        slopes.append(matrix @ state + b)
    empty = source.new_zeros(0, dtype=torch.float64)
    return torch.cat([*states, empty]), torch.cat([*slopes, empty])
