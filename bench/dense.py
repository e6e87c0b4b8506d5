"""
The same quantities in a few lines of plain PyTorch: the baseline, and an independent check of ours.

Every phase and every pair is held in memory, system by system; autograd does the derivatives.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scfmlip.electrostatics.density import self_interaction
from scfmlip.types import CARTESIAN_FROM_E3NN, E3NN_FROM_CARTESIAN
from scfmlip.units import COULOMB_CONSTANT, FIELD_CONSTANT
from scfmlip_kernels.lattice import monomials

from .problems import Problem
from .registry import SIGMA, WIDTHS

# potential and its gradient at every atom of one system, from charges and Cartesian dipoles, for a
# receiving width
Field = Callable[[Tensor, Tensor | None, float], tuple[Tensor, Tensor]]


def _split(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    if rows.shape[1] == 1:
        return rows[:, 0], None
    return rows[:, 0], rows[:, 1:][:, list(CARTESIAN_FROM_E3NN)]


def _periodic_field(r: Tensor, k: Tensor, volume: Tensor) -> Field:
    phase = r @ k.T
    cos, sin = phase.cos(), phase.sin()  # [n_atoms, n_k]
    k2 = (k**2).sum(1)

    def field(q: Tensor, d: Tensor | None, width: float) -> tuple[Tensor, Tensor]:
        re, im = q @ cos, -(q @ sin)
        if d is not None:
            re = re - ((d.T @ sin) * k.T).sum(0)
            im = im - ((d.T @ cos) * k.T).sum(0)
        factor = 2 * FIELD_CONSTANT / volume * torch.exp(-0.5 * (SIGMA**2 + width**2) * k2) / k2
        re, im = factor * re, factor * im
        u0, u1, _ = self_interaction(SIGMA, width)
        value = cos @ re - sin @ im - u0 * q
        gradient = -(sin @ (re[:, None] * k) + cos @ (im[:, None] * k))
        return value, gradient if d is None else gradient - u1 * d

    return field


def pair_derivatives(r: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``((1/r) d/dr)^n erf(r / sqrt(2) S) / r`` of every pair, n = 0, 1, 2, and the distance vectors."""
    vector = r[:, None] - r[None]
    own = torch.eye(len(r), dtype=torch.bool, device=r.device)
    r2 = (vector**2).sum(-1).masked_fill(own, 1.0)
    distance = r2.sqrt()
    alpha = 1 / (math.sqrt(2) * width)
    gauss = 2 * alpha / math.sqrt(math.pi) * torch.exp(-(alpha**2) * r2)
    f0 = torch.erf(alpha * distance) / distance
    f1 = (gauss - f0) / r2
    f2 = (-2 * alpha**2 * gauss - 3 * f1) / r2
    return *(f.masked_fill(own, 0.0) for f in (f0, f1, f2)), vector  # type: ignore[return-value]


def pair_field(r: Tensor, q: Tensor, d: Tensor | None, width: float) -> tuple[Tensor, Tensor]:
    """Potential and gradient of all other atoms' Gaussians, without the unit's constant."""
    f0, f1, f2, vector = pair_derivatives(r, width)
    if d is None:
        return f0 @ q, torch.einsum("ijx,ij,j->ix", vector, f1, q)
    along = (vector * d).sum(-1)
    value = f0 @ q - (along * f1).sum(1)
    radial = q * f1 - along * f2
    return value, torch.einsum("ijx,ij->ix", vector, radial) - f1 @ d


def _open_field(r: Tensor) -> Field:
    def field(q: Tensor, d: Tensor | None, width: float) -> tuple[Tensor, Tensor]:
        value, gradient = pair_field(r, q, d, math.hypot(SIGMA, width))
        return COULOMB_CONSTANT * value, COULOMB_CONSTANT * gradient

    return field


def fields(problem: Problem, positions: Tensor) -> list[Field]:
    """One function per system."""
    split = positions.split(problem.counts)
    if problem.case.open_boundary:
        return [_open_field(r) for r in split]
    volumes = torch.linalg.det(problem.cells)
    return [_periodic_field(r, k, v) for r, k, v in zip(split, problem.wave_vectors, volumes, strict=True)]


def energy(systems: list[Field], problem: Problem, rows: Tensor) -> Tensor:
    """``[n_systems]`` eV, without self-interaction."""
    energies = []
    for field, mine in zip(systems, rows.split(problem.counts), strict=True):
        q, d = _split(mine)
        value, gradient = field(q, d, SIGMA)
        twice = (q * value).sum()
        energies.append(0.5 * (twice if d is None else twice + (d * gradient).sum()))
    return torch.stack(energies)


def features(systems: list[Field], problem: Problem, rows: Tensor) -> Tensor:
    """``[n_atoms, n_widths * 4]``, e3nn order, without self-interaction."""
    parts = []
    for field, mine in zip(systems, rows.split(problem.counts), strict=True):
        found = [field(*_split(mine), width) for width in WIDTHS]
        values = [math.sqrt(4 * math.pi) * value for value, _ in found]
        scales = [math.sqrt(1.5) * math.pi * width for width in WIDTHS]
        order = list(E3NN_FROM_CARTESIAN)
        gradients = [s * g[:, order] for s, (_, g) in zip(scales, found, strict=True)]
        parts.append(torch.cat((torch.stack(values, 1), *gradients), 1))
    return torch.cat(parts)


def _waves(problem: Problem, frac: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``e^{-2 pi i n.u}`` of every (point, atom) of one system, and the points."""
    n = problem.grid.miller.double()
    turns = n @ frac.T
    phase = (turns - turns.round()).to(dtype) * (-2 * math.pi)
    wave = torch.polar(torch.ones_like(phase), phase)
    same = problem.grid.system[:, None] == problem.batch_idx[None]
    return wave * same, n


def _powers(n: Tensor, rank: int) -> list[Tensor]:
    return [n[:, 0] ** a * n[:, 1] ** b * n[:, 2] ** c for a, b, c in monomials(rank)]


def structure_factor(problem: Problem, frac: Tensor, moments: Tensor) -> Tensor:
    """As `scfmlip_kernels.structure_factor`."""
    wave, n = _waves(problem, frac, moments.dtype)
    total = torch.zeros((len(n), moments.shape[1]), dtype=wave.dtype, device=frac.device)
    for exponents, power, m in zip(
        monomials(problem.case.rank), _powers(n, problem.case.rank), moments.unbind(-1), strict=True
    ):
        factor = (-1j) ** sum(exponents) * power.to(wave.dtype)
        total = total + factor[:, None] * (wave @ m.to(wave.dtype))
    return torch.view_as_real(total).double()


def lattice_field(problem: Problem, frac: Tensor, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """As `scfmlip_kernels.lattice_field`."""
    wave, n = _waves(problem, frac, dtype)
    p = torch.view_as_complex(coefficients).to(wave.dtype)
    columns = []
    for exponents, power in zip(monomials(problem.case.rank), _powers(n, problem.case.rank), strict=True):
        factor = (1j) ** sum(exponents) * power.to(wave.dtype)
        columns.append((wave.conj().T @ (factor[:, None] * p)).real)
    return torch.stack(columns, -1)
