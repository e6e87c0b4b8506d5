"""Random calls of the Coulomb operator, checked against pair sums in real space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from electrostatics.brute_force import alpha_of, coulomb_matrix, open_pair, periodic_pair, slab_pair

from fuzz.outcomes import check
from scfmlip import Coulomb

F64 = torch.float64
# values that no argument may have, or that are strange but good
HOSTILE: list[Any] = [None, math.nan, math.inf, -1.0, 0, "1.5", "x", [], True, 1e300, np.nan, (1.0, math.nan)]


def random_cell(rng: np.random.Generator) -> np.ndarray:
    """Skewed or not, of either handedness, volume of 60 angstrom^3 and more."""
    cell = np.diag(rng.uniform(4.0, 7.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3)) * (rng.random() < 0.7)
    if rng.random() < 0.2:
        cell[rng.integers(3)] += rng.integers(-2, 3) * cell[rng.integers(3)]
    if rng.random() < 0.3:
        cell = cell[rng.permutation(3)]
    return cell if abs(np.linalg.det(cell)) > 30.0 else np.diag(rng.uniform(4.0, 7.0, 3))


PERIODICITIES = [(True,) * 3, (True, True, False), (False, True, True), (True, False, True), (False,) * 3]


def random_systems(rng: np.random.Generator, largest: int = 3) -> list[dict[str, np.ndarray]]:
    """Up to three systems of up to three atoms: charges and dipoles."""
    systems = []
    for _ in range(int(rng.integers(1, 4))):
        n = int(rng.integers(0, largest + 1))
        pbc = PERIODICITIES[rng.integers(len(PERIODICITIES))]
        cell = random_cell(rng)
        positions = rng.random((n, 3)) @ cell
        if rng.random() < 0.3:  # any image along periodic directions
            positions += rng.integers(-200, 200, (n, 3)) * np.array(pbc) @ cell
        if sum(pbc) == 2:
            axis = pbc.index(False)
            normal = np.cross(cell[axis - 2], cell[axis - 1])
            normal /= np.linalg.norm(normal)
            if rng.random() < 0.5:  # a slab of any thickness
                positions += rng.uniform(-15.0, 15.0, (n, 1)) * normal
            if rng.random() < 0.5:
                cell[axis] = rng.choice([0.0, 0.3, 30.0]) * normal
        rows = rng.normal(size=(n, 4)) * [0.7, 0.3, 0.3, 0.3]
        systems.append({"positions": positions, "cell": cell, "pbc": np.array(pbc), "rows": rows})
    return systems


def pair_of(system: dict[str, np.ndarray], alpha: float):
    """The interaction of two Gaussians in real space."""
    cell, pbc = torch.tensor(system["cell"]), system["pbc"].tolist()
    if all(pbc):
        if float(torch.linalg.det(cell)) < 0:
            cell = cell[[1, 0, 2]]
        return periodic_pair(cell, alpha)
    if not any(pbc):
        return open_pair(alpha)
    first, second = cell[torch.tensor(pbc)]
    return slab_pair(first, second, alpha)


def in_cell(system: dict[str, np.ndarray]) -> torch.Tensor:
    """Positions moved into a crystal's cell: the sums above look for images around the origin."""
    r, cell = system["positions"], system["cell"]
    if system["pbc"].all():
        r = (r @ np.linalg.inv(cell) % 1.0) @ cell
    return torch.tensor(r)


def stack(systems: list[dict[str, np.ndarray]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments of `Coulomb.prepare`, and the rows."""
    out = {
        key: torch.tensor(np.concatenate([s[key] for s in systems]), dtype=dtype)
        for key in ("positions", "rows")
    }
    out["cell"] = torch.tensor(np.stack([s["cell"] for s in systems]), dtype=dtype)
    out["pbc"] = torch.tensor(np.stack([s["pbc"] for s in systems]))
    counts = torch.tensor([len(s["positions"]) for s in systems])
    out["batch_idx"] = torch.arange(len(systems)).repeat_interleave(counts)
    return out


def valid_call(rng: np.random.Generator) -> str:
    """Energy, potential and features of a random batch are sums over pairs."""
    systems = random_systems(rng)
    sigma, l_max = float(rng.uniform(0.9, 1.6)), int(rng.integers(2))
    tolerance = float(10 ** rng.uniform(-10, -4))
    dtype = torch.float32 if rng.random() < 0.3 else F64
    given = stack(systems, dtype)
    for system, i in zip(systems, range(len(systems)), strict=True):  # as rounded
        system["positions"] = given["positions"][given["batch_idx"] == i].double().numpy()
        system["cell"] = given["cell"][i].double().numpy()
    rows = given.pop("rows")[:, : 4 if l_max else 1].contiguous()
    width = float(rng.uniform(sigma, 2.5))
    operator = Coulomb(
        l_max=l_max, sigma=sigma, tolerance=tolerance, self_interaction=True, feature_widths=(width,)
    )
    geometry = operator.prepare(**given)
    energy, potential, features = geometry.energy(rows), geometry.potential(rows), geometry.features(rows)
    for i, system in enumerate(systems):
        mine = given["batch_idx"] == i
        n = int(mine.sum())
        if n == 0:
            check(float(energy[i]) == 0.0, f"energy {float(energy[i])} of nothing")
            continue
        r, p = in_cell(system), torch.zeros(n, 4, dtype=F64)
        p[:, : rows.shape[1]] = rows[mine].double()
        want = torch.einsum("iajb,jb->ia", coulomb_matrix(pair_of(system, alpha_of(sigma)), r), p)
        scale = float(p.abs().sum()) ** 2
        # in cells this small up to eleven times the tolerance was measured; rounding of what is far away
        size = max(1.0, float(np.abs(system["positions"]).max()), float(want.abs().max()))
        room = (
            15 * tolerance * max(1.0, scale)
            + (3e-6 if dtype == torch.float32 else 1e-12) * size * max(1.0, scale) * 20
        )
        off = abs(float(energy[i]) - 0.5 * float((p * want).sum()))
        check(off < room, f"energy off by {off:.2e} (allowed {room:.2e}), system {i}, pbc {system['pbc']}")
        off = float((potential[mine].double() - want[:, : rows.shape[1]]).abs().max())
        check(off < room, f"potential off by {off:.2e} (allowed {room:.2e}), system {i}, pbc {system['pbc']}")
        wide = torch.einsum("iajb,jb->ia", coulomb_matrix(pair_of(system, alpha_of(sigma, width)), r), p)
        value = features[mine][:, 0].double() / math.sqrt(4 * math.pi)
        off = float((value - wide[:, 0]).abs().max())
        check(off < room, f"features off by {off:.2e} (allowed {room:.2e}), system {i}, pbc {system['pbc']}")
    return f"right, {'charges' if l_max == 0 else 'dipoles'}, {str(dtype)[6:]}"


def hostile_call(rng: np.random.Generator) -> str:
    """One argument or value is spoilt: refused, or a finite number where nobody needs what was spoilt."""
    systems = random_systems(rng)
    given: dict[str, Any] = stack(systems, F64)
    rows = given.pop("rows")
    options: dict[str, Any] = {"sigma": 1.2, "tolerance": 1e-4}
    fields: dict[str, Any] = {}
    what = rng.integers(12)
    bad = HOSTILE[rng.integers(len(HOSTILE))]
    if what == 0:
        options[
            rng.choice(
                [
                    "sigma",
                    "tolerance",
                    "l_max",
                    "kspace_cutoff",
                    "feature_widths",
                    "boundary",
                    "order",
                    "compat",
                    "background",
                    "method",
                ]
            )
        ] = bad
    elif what == 1:
        key = rng.choice(["positions", "cell", "pbc", "batch_idx"])
        given[key] = bad
    elif what == 2 and len(given["positions"]):
        given["positions"][rng.integers(len(given["positions"])), rng.integers(3)] = rng.choice(
            [math.nan, math.inf]
        )
    elif what == 3:
        given["cell"][rng.integers(len(systems)), rng.integers(3)] = rng.choice(
            [math.nan, 0.0, math.inf, 1e-3, 1e4]
        )
    elif what == 4:
        given["batch_idx"] = (
            given["batch_idx"].flip(0)
            if rng.random() < 0.5
            else given["batch_idx"] + int(rng.choice([1, -1, 30_000_000]))
        )
    elif what == 5:
        key = rng.choice(["positions", "cell", "batch_idx"])
        given[key] = given[key].to(rng.choice([torch.float32, torch.int64, torch.float16, torch.complex64]))
    elif what == 6:
        key = rng.choice(["positions", "cell", "pbc", "batch_idx"])
        given[key] = given[key][:-1] if rng.random() < 0.5 else given[key][..., None]
    elif what == 7:
        rows = [rows[:-1], rows[:, :2], rows * math.nan, rows.float(), rows[:, 0], rows.tolist(), None][
            rng.integers(7)
        ]
    elif what == 8:
        fields["external_field"] = [bad, (0.1, 0.0, 0.0), (0.1, 0.2), torch.ones(7, 3)][rng.integers(4)]
    elif what == 9:
        fields["external_potential"] = [bad, (0.1, 0.2, 0.3, 0.4), 0.3][rng.integers(3)]
    elif what == 10:
        fields["counter_charge"] = [bad, (1.0, 0.0), (0.0, 1.0), (0.0, 1.0, 2.0)][rng.integers(4)]
    else:
        options[rng.choice(["sigma", "feature_widths", "kspace_cutoff"])] = float(10 ** rng.uniform(-3, 3))
    geometry = Coulomb(**options).prepare(**given, **fields)
    if rng.random() < 0.3:
        widths = [None, (bad,), bad, (1.5, 3.0), (0.01,)][rng.integers(5)]
        result = geometry.features(rows, widths=widths)
    elif rng.random() < 0.3:
        points = torch.rand(int(rng.integers(4)), 3, dtype=F64)
        index = [None, bad, torch.zeros(len(points), dtype=torch.int64)][rng.integers(3)]
        result = geometry.at(points, rows, index).potential
    else:
        result = geometry.energy(rows)
    check(torch.isfinite(result).all(), f"{result.tolist()} without a word")
    return "accepted"
