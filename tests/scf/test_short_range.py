"""Widths of the atoms' own, by a smooth operator and neighbours: against whole matrices."""

import pytest
import torch
from tolerances import assert_close

from scf import oracles
from scfmlip import Coulomb, charge_equilibration
from scfmlip.electrostatics.range_split import pair_cutoff
from scfmlip.scf import (
    ExtendedLagrangian,
    NeighbourPairs,
    neighbour_pairs,
    shadow_equilibration,
    smooth_width,
)

F64 = torch.float64
matscipy = pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")


def atoms(generator, n=14, edge=5.5):
    """Jittered, in a skewed cell, widths from 0.3 to 1.1 angstrom."""
    positions = torch.cartesian_prod(*(1.8 * torch.arange(3, dtype=F64),) * 3)[:n]
    positions = positions + 0.3 * torch.rand(n, 3, generator=generator, dtype=F64)
    cell = edge * torch.eye(3, dtype=F64) + 0.3 * torch.rand(3, 3, generator=generator, dtype=F64).tril(-1)
    chi = torch.randn(n, generator=generator, dtype=F64)
    hardness = 1 + torch.rand(n, generator=generator, dtype=F64)
    widths = 0.3 + 0.8 * torch.rand(n, generator=generator, dtype=F64)
    return positions, cell, chi, hardness, widths


MATRIX = {
    "open": (oracles.open_matrix, [False] * 3),
    "slab": (oracles.slab_matrix, [True, True, False]),
    "crystal": (oracles.periodic_matrix, [True] * 3),
}


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("kind", MATRIX)
def test_against_whole_matrices(kind, method, generator):
    """A charged system, so that every average counts."""
    positions, cell, chi, hardness, widths = atoms(generator)
    matrix, pbc = MATRIX[kind]
    given = (positions, widths) if kind == "open" else (positions, cell, widths)
    charges, potential, energy = oracles.equilibrate(matrix(*given), chi, hardness, 0.7)
    operator = Coulomb(l_max=0, sigma=1.3, tolerance=1e-13)
    geometry = operator.prepare(positions, None if kind == "open" else cell, pbc)
    solution = charge_equilibration(
        geometry, chi, hardness, 0.7, widths=widths, method=method, tolerance=1e-13
    )
    assert_close(solution.charges, charges, 1e-10)
    assert_close(solution.chemical_potential[0], potential, 1e-10)
    assert_close(solution.energy[0], energy, 1e-10)


def test_the_smooth_width_does_not_matter(generator):
    """At the operator's tolerance, and neither does a list longer than needed, in any order."""
    positions, cell, chi, hardness, widths = atoms(generator)
    found = []
    for smooth in (1.0, 1.4, 2.0):
        geometry = Coulomb(l_max=0, sigma=smooth, tolerance=1e-9).prepare(positions, cell)
        found.append(charge_equilibration(geometry, chi, hardness, widths=widths).charges)
        assert_close(found[-1], found[0], 1e-7)
    pairs = neighbour_pairs(positions, cell, [True] * 3, None, 30.0)
    order = torch.randperm(pairs.edge_index.shape[1], generator=generator)
    mixed = NeighbourPairs(pairs.edge_index[:, order], pairs.edge_shift[order], 30.0)
    again = charge_equilibration(geometry, chi, hardness, widths=widths, pairs=mixed).charges
    assert_close(again, found[0], 1e-7)


def test_a_batch_equals_a_loop(generator):
    """A crystal, a cluster and a slab with different numbers of atoms."""
    parts = [atoms(generator, n) for n in (14, 5, 9)]
    flags = [[True] * 3, [False] * 3, [True, True, False]]
    parts[2][1][2] = torch.tensor([0.0, 0.0, 30.0])
    index = torch.arange(3).repeat_interleave(torch.tensor([14, 5, 9]))
    positions, chi, hardness, widths = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3, 4))
    cells = torch.stack([p[1] for p in parts])
    totals = torch.tensor([0.5, 1.0, -1.0], dtype=F64)
    operator = Coulomb(l_max=0, sigma=1.3, tolerance=1e-9)
    for method in ("dense", "cg"):
        options = {"method": method, "tolerance": 1e-12}
        geometry = operator.prepare(positions, cells, flags, index)
        together = charge_equilibration(geometry, chi, hardness, totals, widths=widths, **options)
        for i, (r, cell, x, j, s) in enumerate(parts):
            geometry = operator.prepare(r, cell, flags[i])
            alone = charge_equilibration(geometry, x, j, totals[i : i + 1], widths=s, **options)
            assert_close(together.charges[i == index], alone.charges, 1e-9)
            assert_close(together.energy[i : i + 1], alone.energy, 1e-9)


@pytest.mark.parametrize("kind", ["open", "crystal"])
def test_derivatives(kind, generator):
    """First and second, in widths too; the list stays while positions move by a step of differences."""
    positions, cell, chi, hardness, widths = atoms(generator, 4, 4.0)
    pbc = [kind == "crystal"] * 3
    operator = Coulomb(l_max=0, sigma=1.2, tolerance=1e-3)
    plan = operator.plan(cell if kind == "crystal" else None, pbc, None, 4)
    pairs = neighbour_pairs(positions, cell, pbc, None, pair_cutoff(1.2, 1.2, 1e-4))

    def function(positions, cell, chi, hardness, widths):
        geometry = operator.prepare(positions, cell if kind == "crystal" else None, plan=plan)
        solution = charge_equilibration(geometry, chi, hardness, 0.4, widths=widths, pairs=pairs)
        return (solution.state**3).sum(), solution.energy, solution.chemical_potential

    inputs = [t.clone().requires_grad_() for t in (positions, cell, chi, hardness, widths)]
    if kind == "open":
        inputs[1].requires_grad_(False)
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-5, fast_mode=True)


def test_iterations_and_shadow(generator):
    """Sparse factors out of the list; fixed steps near the minimum."""
    n = 343
    positions = torch.cartesian_prod(*(2.1 * torch.arange(7, dtype=F64),) * 3)
    positions = positions + 0.3 * torch.rand(n, 3, generator=generator, dtype=F64)
    cell = 14.7 * torch.eye(3, dtype=F64)
    chi = torch.randn(n, generator=generator, dtype=F64)
    widths = 0.4 + 0.6 * torch.rand(n, generator=generator, dtype=F64)
    hardness = torch.ones(n, dtype=F64)
    operator = Coulomb(l_max=0, sigma=smooth_width(n, 14.7**3))
    geometry = operator.prepare(positions, cell)
    options = {"method": "cg", "widths": widths}
    listed = charge_equilibration(geometry, chi, hardness, **options)
    plain = charge_equilibration(geometry, chi, hardness, preconditioner="none", **options)
    assert int(listed.iterations) * 2 < int(plain.iterations)
    assert_close(listed.charges, plain.charges, 1e-5)
    propagator = ExtendedLagrangian()
    propagator.add(listed.state)
    shadow = shadow_equilibration(geometry, chi, hardness, widths=widths, auxiliary=propagator.guess())
    assert_close(shadow.charges, listed.charges, 1e-5)
    assert_close(shadow.energy, listed.energy, 1e-9)


def test_float32(generator):
    positions, cell, chi, hardness, widths = atoms(generator)
    exact = charge_equilibration(
        Coulomb(l_max=0, sigma=1.3).prepare(positions, cell), chi, hardness, widths=widths
    )
    geometry = Coulomb(l_max=0, sigma=1.3).prepare(positions.float(), cell.float())
    single = charge_equilibration(geometry, chi.float(), hardness.float(), widths=widths.float())
    assert single.charges.dtype == torch.float32
    assert_close(single.charges, exact.charges, 2e-5)


def test_bad_input(generator):
    positions, cell, chi, hardness, widths = atoms(generator)
    geometry = Coulomb(l_max=0, sigma=1.3).prepare(positions, cell)
    with pytest.raises(ValueError, match=r"widths must be torch.float64 of shape \[14\]"):
        charge_equilibration(geometry, chi, hardness, widths=widths[:3])
    with pytest.raises(ValueError, match="widths must be positive"):
        charge_equilibration(geometry, chi, hardness, widths=-widths)
    with pytest.raises(ValueError, match="one smooth width"):
        charge_equilibration(
            Coulomb(l_max=0, sigma=(1.0, 2.0)).prepare(positions, cell),
            chi,
            hardness,
            widths=widths,
            width_index=torch.zeros(14, dtype=torch.int64),
        )
    short = neighbour_pairs(positions, cell, [True] * 3, None, 4.0)
    with pytest.raises(ValueError, match=r"pairs reach to 4 angstrom, .* need 9\."):
        charge_equilibration(geometry, chi, hardness, widths=widths, pairs=short)
    with pytest.raises(ValueError, match="pass widths"):
        charge_equilibration(geometry, chi, hardness, pairs=short)
