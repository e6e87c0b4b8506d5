"""Plain PyTorch definition of closed charges; the tests' source of truth."""

import torch
from torch import Tensor


def close_charges_reference(
    charges: Tensor, update: Tensor, targets: Tensor, index: Tensor, n_systems: int
) -> Tensor:
    """One system after another; arguments as in `close_charges`."""
    half = charges.shape[1] // 2
    out = torch.zeros_like(charges)
    for system in range(n_systems):
        mine = (index == system).nonzero()[:, 0]
        rows, more = charges[mine], update[mine]
        if more.shape[1] > 2:
            rows = rows + more[:, :-2]
        for spin in range(2):
            weights, total = more[:, spin - 2], rows[:, spin * half].sum()
            norm = weights.sum()
            shares = weights / norm if float(norm.detach()) != 0 else weights
            add = shares * (targets[system, spin] - total)
            place = torch.zeros(charges.shape[1]).to(charges)
            place[spin * half] = 1
            rows = rows + add[:, None] * place
        out = out.index_add(0, mine, rows)
    return out
