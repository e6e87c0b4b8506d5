"""
Charge equilibration by whole matrices in float64: nothing of the library but its constant.

Matrix elements in eV/e^2 between Gaussians of widths s_i, s_j with g^2 = s_i^2 + s_j^2: in free space
``erf(r / sqrt2 g) / r``; in a crystal the formulas of NequIP-LR's public code (repository nequip-lr, branch
develop: its Ewald sum is right, those of later branches lost images), with a real-space cutoff that knows the
widest Gaussian; in a slab Parry's sum, Surf. Sci. 49, 433 (1975).
"""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scfmlip.units import COULOMB_CONSTANT

F64 = torch.float64
DATA = Path(__file__).parents[2].parent / "shared" / "data"
SQRT2, SQRT_PI = math.sqrt(2.0), math.sqrt(math.pi)


def frames(name: str, numbers: list[int]) -> list:
    """Structures of a data file; skips the test where the file, or ASE, is absent."""
    io = pytest.importorskip("ase.io", reason="structures are read with ASE")
    if not (DATA / name).exists():
        pytest.skip(f"the data set {name} is not beside this checkout (../shared/data)")
    return [io.read(DATA / name, index=i) for i in numbers]


def tensors(atoms) -> tuple[Tensor, Tensor | None, list[bool]]:
    """Positions, cell (None if isolated) and periodicity."""
    pbc = [bool(p) for p in atoms.pbc]
    cell = torch.tensor(np.array(atoms.cell), dtype=F64) if any(pbc) else None
    return torch.tensor(atoms.positions, dtype=F64), cell, pbc


def pair_widths(widths: Tensor) -> Tensor:
    """G of every pair."""
    return (widths[:, None] ** 2 + widths[None] ** 2).sqrt()


def open_matrix(positions: Tensor, widths: Tensor) -> Tensor:
    """Isolated system."""
    n = len(positions)
    eye = torch.eye(n, dtype=F64)
    delta = positions[:, None] - positions[None]
    r = ((delta**2).sum(-1) + eye).sqrt()
    matrix = torch.erf(r / (SQRT2 * pair_widths(widths))) / r
    return COULOMB_CONSTANT * (matrix * (1 - eye) + torch.diag(1 / (SQRT_PI * widths)))


def _wave_vectors(vectors: Tensor, cutoff: float) -> Tensor:
    """All but 0 up to the cutoff, of a lattice with these rows (two or three)."""
    reciprocal = 2 * math.pi * torch.linalg.pinv(vectors.detach()).T
    tops = [math.ceil(cutoff * float(v.norm()) / (2 * math.pi)) for v in vectors]
    n = torch.tensor(list(product(*(range(-t, t + 1) for t in tops))), dtype=F64)
    k = n @ reciprocal
    return n[(k.norm(dim=1) > 1e-9) & (k.norm(dim=1) < cutoff)]


def periodic_matrix(positions: Tensor, cell: Tensor, widths: Tensor, accuracy: float = 1e-15) -> Tensor:
    """
    Crystal in a uniform background, by Ewald's method with a screening Gaussian of width ``eta``.

    real ``[erfc(r / sqrt2 eta) - erfc(r / sqrt2 g)] / r``, wave vectors ``4 pi / V exp(-eta^2 k^2 / 2) / k^2
    cos(k.r)``, diagonal ``1 / (sqrt(pi) s) - sqrt(2 / pi) / eta``, and the k = 0 terms of the two real-space
    parts, ``2 pi (g^2 - eta^2) / V``, which that code leaves out: charges do not see what is the same for all
    pairs, but different widths of a charged system do.
    """
    n_atoms, volume = len(positions), torch.linalg.det(cell).abs()
    eta = float((volume**2 / n_atoms) ** (1 / 6)) / math.sqrt(2 * math.pi)
    g = pair_widths(widths)
    reach = math.sqrt(-2 * math.log(accuracy))
    cutoff = reach * max(eta, float(g.max()))
    inverse = torch.linalg.inv(cell)
    delta = positions[:, None] - positions[None]
    delta = delta - (delta.detach() @ inverse.detach()).round() @ cell
    tops = [math.ceil(cutoff * float(h)) + 1 for h in inverse.detach().norm(dim=0)]
    eye = torch.eye(n_atoms, dtype=F64)
    matrix = torch.zeros((n_atoms, n_atoms), dtype=F64)
    longest = float(cell.detach().norm(dim=1).sum()) / 2
    for shift in product(*(range(-t, t + 1) for t in tops)):
        image = torch.tensor(shift, dtype=F64) @ cell
        if float(image.norm()) > cutoff + longest:
            continue
        own = eye if not any(shift) else torch.zeros_like(eye)
        r = (((delta + image) ** 2).sum(-1) + own).sqrt()
        term = (torch.erfc(r / (SQRT2 * eta)) - torch.erfc(r / (SQRT2 * g))) / r
        matrix = matrix + term * (1 - own)
    k = 2 * math.pi * _wave_vectors(cell, reach / eta) @ inverse.T
    k2 = (k**2).sum(1)
    weight = 4 * math.pi / volume * torch.exp(-0.5 * eta**2 * k2) / k2
    phase = positions @ k.T
    cos, sin = phase.cos(), phase.sin()
    matrix = matrix + (cos * weight) @ cos.T + (sin * weight) @ sin.T
    matrix = matrix + torch.diag(1 / (SQRT_PI * widths) - math.sqrt(2 / math.pi) / eta)
    return COULOMB_CONSTANT * (matrix + 2 * math.pi * (g**2 - eta**2) / volume)


def slab_matrix(positions: Tensor, cell: Tensor, widths: Tensor) -> Tensor:
    """Periodic along the first two vectors; no cell height enters."""
    normal = torch.linalg.cross(cell[0], cell[1])
    area = float(normal.norm())
    z = positions @ (normal / area)
    z = z[:, None] - z[None]
    alpha = 1 / (SQRT2 * pair_widths(widths))
    n = _wave_vectors(cell[:2], 13 * float(alpha.max()))
    waves = n @ (2 * math.pi * torch.linalg.pinv(cell[:2]).T)
    matrix = -2 * math.pi * (z * torch.erf(alpha * z) + torch.exp(-((alpha * z) ** 2)) / (alpha * SQRT_PI))
    for part in waves.split(500):
        length = part.norm(dim=1)[:, None, None]
        phase = positions @ part.T
        cos = torch.cos(phase.T[:, :, None] - phase.T[:, None])
        # exp(k z) erfc(k / 2 a + a z) with scaled erfc, so that neither factor overflows
        decay = torch.exp(-((length / (2 * alpha)) ** 2) - (alpha * z) ** 2)
        both = torch.zeros_like(cos)
        for height in (z, -z):
            x = length / (2 * alpha) + alpha * height
            near = torch.special.erfcx(x.clamp_min(0)) * decay
            far = torch.exp(torch.where(x < 0, length * height, 0.0)) * torch.special.erfc(x.clamp_max(0))
            both = both + torch.where(x < 0, far, near)
        matrix = matrix + (cos * both * math.pi / length).sum(0)
    return COULOMB_CONSTANT / area * matrix


def equilibrate(matrix: Tensor, chi: Tensor, hardness: Tensor, total: float) -> tuple[Tensor, Tensor, Tensor]:
    """
    Charges, chemical potential and energy of one system by the bordered (KKT) system.

    ``[A 1; 1^T 0] (q, -mu) = (-chi, Q)`` with ``A = diag(J) + C``.
    """
    n = len(chi)
    a = matrix + torch.diag(hardness)
    ones = torch.ones((n, 1), dtype=F64)
    bordered = torch.cat((torch.cat((a, ones), 1), torch.cat((ones.T, torch.zeros((1, 1), dtype=F64)), 1)))
    x = torch.linalg.solve(bordered, torch.cat((-chi, torch.tensor([total], dtype=F64))))
    q = x[:n]
    return q, -x[n], chi @ q + 0.5 * q @ a @ q
