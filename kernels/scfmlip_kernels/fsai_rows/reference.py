"""Plain PyTorch definition; the CPU path, and the tests' source of truth."""

import math

import torch
from torch import Tensor

# numbers of the matrices that are made at a time
_CHUNK = 1 << 21


def fsai_rows_reference(
    vectors: Tensor, neighbours: Tensor, used: Tensor, widths: Tensor, diagonal: Tensor, coulomb: float
) -> Tensor:
    """As `fsai_rows`, in the dtype of ``vectors``."""
    n, m = neighbours.shape
    # the atom itself comes last
    index = torch.cat((neighbours, torch.arange(n, device=vectors.device)[:, None]), 1)
    place = torch.cat((vectors, vectors.new_zeros(n, 1, 3)), 1)
    there = torch.cat((used, used.new_ones(n, 1)), 1)
    rows = []
    for start in range(0, n, max(1, _CHUNK // (m + 1) ** 2)):
        part = slice(start, start + max(1, _CHUNK // (m + 1) ** 2))
        rows.append(_rows(place[part], index[part], there[part], widths, diagonal, coulomb))
    return torch.cat(rows) if rows else vectors.new_zeros(0, m + 1)


def _rows(
    place: Tensor, index: Tensor, used: Tensor, widths: Tensor, diagonal: Tensor, coulomb: float
) -> Tensor:
    r = (place[:, :, None] - place[:, None, :]).norm(dim=-1)
    width = widths[index]
    gamma = (width[:, :, None] ** 2 + width[:, None, :] ** 2).sqrt()
    safe = torch.where(r > 1e-9, r, torch.ones_like(r))
    pair = coulomb * torch.erf(safe / (math.sqrt(2) * gamma)) / safe
    pair = torch.where(r > 1e-9, pair, coulomb * math.sqrt(2 / math.pi) / gamma)
    eye = torch.eye(used.shape[1], dtype=torch.bool, device=place.device)
    both = used[:, :, None] & used[:, None, :] & ~eye
    block = torch.where(both, pair, 0.0) + torch.diag_embed(torch.where(used, diagonal[index], 1.0))
    unit = block.new_zeros(used.shape[1], 1)
    unit[-1] = 1.0
    row = torch.linalg.solve_ex(block, unit.expand(len(block), -1, -1))[0][..., 0]
    # a neighbourhood that is not positive definite (negative hardness) falls back to its diagonal
    good = (row[:, -1] > 0) & torch.isfinite(row).all(1)
    alone = unit[:, 0] / diagonal[index[:, -1:]].abs().clamp(min=1e-6)
    row = torch.where(good[:, None], row, alone)
    return torch.where(used, row / row[:, -1:].sqrt(), 0.0)
