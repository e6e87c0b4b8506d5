"""Small systems the electrostatics tests share."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scfmlip import Coulomb, Geometry

CRYSTAL, SLAB, ISOLATED = [True, True, True], [True, True, False], [False, False, False]


def random_batch(
    sizes: list[int], generator: torch.Generator, triclinic: float = 0.0, net_charge: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, cells, batch_idx and multipoles (charge 0.5 e, dipoles 0.2 e angstrom) in float64."""
    positions, cells, batch = [], [], []
    for i, n in enumerate(sizes):
        cell = torch.eye(3, dtype=torch.float64) * (max(n, 8) / 0.1) ** (1 / 3)
        cell += triclinic * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        positions.append(torch.rand(n, 3, generator=generator, dtype=torch.float64) @ cell)
        cells.append(cell)
        batch += [i] * n
    n_atoms = sum(sizes)
    rows = torch.randn(n_atoms, 4, generator=generator, dtype=torch.float64)
    rows *= torch.tensor([0.5, 0.2, 0.2, 0.2], dtype=torch.float64)
    batch_idx = torch.tensor(batch, dtype=torch.int64)
    if not net_charge:
        for i in range(len(sizes)):
            rows[batch_idx == i, 0] -= rows[batch_idx == i, 0].mean()
    return torch.cat(positions), torch.stack(cells), batch_idx, rows


def spread_positions(n: int, box: float, generator: torch.Generator, apart: float = 1.0) -> Tensor:
    """Random positions in a cube, no two closer than ``apart`` angstrom, float64."""
    found: list[Tensor] = []
    while len(found) < n:
        r = torch.rand(3, generator=generator, dtype=torch.float64) * box
        if all(float((r - other).norm()) > apart for other in found):
            found.append(r)
    return torch.stack(found)


def reciprocal_arguments(module, cutoff: float, cells: Tensor) -> dict[str, Tensor]:
    """What graph_longrange's modules take besides positions and coefficients."""
    reciprocal = 2 * math.pi * torch.linalg.inv(cells.mT)
    k, k2, batch, origin = module.kspace.compute_k_vectors_flat(cutoff, cells, reciprocal)
    return {
        "k_vectors": k,
        "k_norm2": k2,
        "k_vector_batch": batch,
        "k0_mask": origin,
        "volume": torch.linalg.det(cells),
    }


@dataclass
class Case:
    """One system, or a batch, under one boundary condition."""

    positions: Tensor
    cell: Tensor | None
    pbc: Any
    rows: Tensor
    options: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    batch_idx: Tensor | None = None

    def coulomb(self, **changes: Any) -> Coulomb:
        return Coulomb(**{"self_interaction": True, **self.options, **changes})

    def geometry(self, positions: Tensor | None = None, **changes: Any) -> Geometry:
        """The case's own geometry, or at other positions or with other options."""
        positions = self.positions if positions is None else positions
        operator = self.coulomb(**changes)
        return operator.prepare(positions, self.cell, self.pbc, self.batch_idx, **self.fields)


BOUNDARIES = [
    "crystal",
    "charged crystal",
    "slab",
    "charged slab",
    "slab in a field",
    "slab with a counter-charge",
    "molecule in a box",
    "molecule",
    "molecule in a field",
    "batch of all",
]


def boundary_case(name: str, generator: torch.Generator, n_atoms: int = 4, edge: float = 6.0) -> Case:
    """Small random systems of every boundary condition: charges, dipoles, a sheared cell, float64."""
    if name == "batch of all":
        parts = [boundary_case(n, generator, n_atoms + i, edge) for i, n in enumerate(BOUNDARIES[:4])]
        parts += [boundary_case("molecule", generator, n_atoms, edge) for _ in range(2)]
        numbers = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p.positions) for p in parts]))
        cells = torch.stack([torch.eye(3, dtype=torch.float64) if p.cell is None else p.cell for p in parts])
        positions, rows = (torch.cat([getattr(p, k) for p in parts]) for k in ("positions", "rows"))
        return Case(positions, cells, [p.pbc for p in parts], rows, {}, batch_idx=numbers)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cell = edge * torch.eye(3, dtype=torch.float64)
    if name != "molecule in a box":
        cell = cell + 0.15 * edge * (torch.rand(3, 3, generator=generator, dtype=torch.float64) - 0.5)
    positions = torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64) @ cell
    rows = normal(n_atoms, 4) * torch.tensor([0.6, 0.3, 0.3, 0.3], dtype=torch.float64)
    if name in ("crystal", "slab"):
        rows[:, 0] -= rows[:, 0].mean()
    fields: dict[str, Any] = {}
    pbc, options = ISOLATED, {}
    if "crystal" in name:
        pbc = CRYSTAL
    elif "slab" in name:
        pbc = SLAB
        cell[2] *= 2.0
        normal_vector = torch.linalg.cross(cell[0], cell[1])
        if name == "slab in a field":
            fields = {"external_field": 0.3 * normal_vector / normal_vector.norm(), "external_potential": 0.7}
        elif name == "slab with a counter-charge":
            fields = {"counter_charge": (1.0, 0.9 * edge)}
    elif name == "molecule in a box":
        options = {"boundary": "molecule_in_box"}
    elif name == "molecule in a field":
        field_vector = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
        fields = {"external_field": field_vector, "external_potential": torch.tensor([-0.4])}
    needs_cell = name not in ("molecule", "molecule in a field")
    return Case(positions, cell if needs_cell else None, pbc, rows, options, fields)


def random_rotation(generator: torch.Generator) -> Tensor:
    """A proper rotation matrix, float64; rows of positions rotate as ``positions @ matrix.T``."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.diagonal(r).sign()
    return q * torch.linalg.det(q)


def rotated_rows(rows: Tensor, rotation: Tensor) -> Tensor:
    """Cartesian multipoles, potentials or features ``[..., 4]`` after a rotation of everything."""
    return torch.cat((rows[..., :1], rows[..., 1:] @ rotation.T), -1)
