"""Narrow Gaussians: when charges go through a smooth operator and neighbours, and how precisely."""

import pytest
import torch
from tolerances import assert_close

from scf.test_short_range import F64, atoms
from scfmlip import Coulomb, charge_equilibration
from scfmlip.scf import arguments, neighbour_pairs

pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")


def lattice(n, generator, spacing=2.1):
    """A jittered cube of n^3 atoms, its cell, electronegativity and hardness."""
    positions = torch.cartesian_prod(*(spacing * torch.arange(n, dtype=F64),) * 3)
    positions = positions + 0.3 * torch.rand(n**3, 3, generator=generator, dtype=F64)
    chi = torch.randn(n**3, generator=generator, dtype=F64)
    return positions, n * spacing * torch.eye(3, dtype=F64), chi, torch.ones(n**3, dtype=F64)


@pytest.fixture
def splits(monkeypatch):
    """What became of each solve: whether it was split."""
    found, split = [], arguments.split_operator

    def watched(*given):
        found.append(split(*given))
        return found[-1]

    monkeypatch.setattr(arguments, "split_operator", watched)
    return lambda: [s is not None for s in found]


@pytest.mark.parametrize(("sigma", "worth"), [(0.3, True), (1.2, False)])
def test_auto_goes_by_cost(sigma, worth, splits, generator):
    positions, cell, chi, hardness = lattice(4, generator)
    geometry = Coulomb(l_max=0, sigma=sigma).prepare(positions, cell)
    found = charge_equilibration(geometry, chi, hardness, 0.5)
    assert splits() == [worth]
    direct = charge_equilibration(geometry, chi, hardness, 0.5, interaction="direct")
    assert splits() == [worth]
    assert_close(found.charges, direct.charges, 1e-6)
    assert_close(found.energy, direct.energy, 1e-6)


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10, 1e-13])
@pytest.mark.parametrize("whose", ["operator", "solve"])
def test_errors_follow_the_tolerance(whose, tolerance, method, generator):
    """Of the operator and of the solve, whichever is smaller; beside a sum that leaves nothing out."""
    positions, cell, chi, hardness = lattice(4, generator)
    tight = Coulomb(l_max=0, sigma=0.4, tolerance=1e-15).prepare(positions, cell)
    exact = charge_equilibration(tight, chi, hardness, 0.5, method="dense", interaction="direct").charges
    operator = Coulomb(l_max=0, sigma=0.4, tolerance=tolerance if whose == "operator" else 1e-3)
    options = {"method": method, "interaction": "split", "tolerance": tolerance}
    found = charge_equilibration(operator.prepare(positions, cell), chi, hardness, 0.5, **options).charges
    assert float((found - exact).abs().max()) < max(tolerance, 1e-13)
    own = torch.full((64,), 0.4, dtype=F64)
    smooth = Coulomb(l_max=0, sigma=1.0, tolerance=operator.tolerance).prepare(positions, cell)
    options = {"method": method, "widths": own, "tolerance": tolerance}
    found = charge_equilibration(smooth, chi, hardness, 0.5, **options).charges
    assert float((found - exact).abs().max()) < max(tolerance, 1e-13)


@pytest.mark.parametrize("kind", ["widths", "slab", "mixed", "field"])
def test_equals_the_operators_own_sum(kind, generator):
    """Several widths, slabs, crystals beside clusters, fields on what does not repeat."""
    positions, cell, chi, hardness, _ = atoms(generator)
    index, pbc, options, given = None, [True] * 3, {}, {}
    if kind == "widths":
        given["width_index"] = torch.arange(14) % 2
    if kind in ("slab", "field"):
        cell = cell.clone()
        cell[2] = torch.tensor([0.0, 0.0, 40.0], dtype=F64)
        pbc = [True, True, False]
    if kind == "field":
        options["external_field"] = torch.tensor([0.0, 0.0, 0.2], dtype=F64)
    if kind == "mixed":
        index = torch.tensor([0] * 8 + [1] * 6)
        pbc, cell = [[True] * 3, [False] * 3], cell.expand(2, 3, 3)
    operator = Coulomb(l_max=0, sigma=(0.4, 0.6) if kind == "widths" else 0.5, tolerance=1e-10)
    leaf = positions.clone().requires_grad_()
    found = []
    for interaction in ("direct", "split"):
        geometry = operator.prepare(leaf, cell, pbc, index, **options)
        solution = charge_equilibration(
            geometry, chi, hardness, 0.3, interaction=interaction, tolerance=1e-12, **given
        )
        (slope,) = torch.autograd.grad(solution.energy.sum() + (solution.charges**3).sum(), leaf)
        found.append((solution.charges, solution.energy, solution.chemical_potential, slope))
    for direct, split in zip(*found, strict=True):
        assert_close(split, direct, 1e-8)


def test_derivatives(generator):
    positions, cell, chi, hardness, _ = atoms(generator, 4, 4.0)

    def function(positions, cell, chi, hardness):
        geometry = Coulomb(l_max=0, sigma=0.4, tolerance=1e-11).prepare(positions, cell)
        solution = charge_equilibration(geometry, chi, hardness, 0.4, interaction="split")
        return (solution.state**3).sum(), solution.energy

    inputs = [t.clone().requires_grad_() for t in (positions, cell, chi, hardness)]
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-5, fast_mode=True)


def test_what_cannot_be_split_says_so(generator):
    positions, cell, chi, hardness, _ = atoms(generator)
    options = {"interaction": "split"}
    open_ = Coulomb(l_max=0, sigma=0.4).prepare(positions)
    with pytest.raises(ValueError, match=r"'split' does not work for systems without periodicity: use"):
        charge_equilibration(open_, chi, hardness, **options)
    given = Coulomb(l_max=0, sigma=0.4, kspace_cutoff=12.0).prepare(positions, cell)
    with pytest.raises(ValueError, match=r"'split' does not work for an operator with its own kspace_cutoff"):
        charge_equilibration(given, chi, hardness, **options)
    charge_equilibration(given, chi, hardness)
    dipoles = Coulomb(l_max=1, sigma=0.4).prepare(positions, cell)
    with pytest.raises(ValueError, match=r"'split' is for charges: give hardness \[n_atoms\]"):
        charge_equilibration(dipoles, chi, hardness[:, None].expand(-1, 4), **options)
    with pytest.raises(ValueError, match="interaction must be 'auto', 'direct' or 'split', got 'fast'"):
        charge_equilibration(given, chi, hardness, interaction="fast")
    with pytest.raises(ValueError, match="'direct' is the operator's own sum"):
        charge_equilibration(given, chi, hardness, interaction="direct", widths=hardness)


def test_any_image_is_a_neighbour(generator):
    """An atom hundreds of cells away is where its image is."""
    positions, cell, chi, hardness, widths = atoms(generator)
    far = positions.clone()
    far[3] += 200 * cell[0] - 129 * cell[1]
    far[7] -= 128 * cell[2] + 40000 * cell[0]
    found = []
    for where in (positions, far):
        pairs = neighbour_pairs(where, cell, [True] * 3, None, 8.0)
        second = where[pairs.edge_index[1]] + pairs.edge_shift @ cell
        assert float((second - where[pairs.edge_index[0]]).norm(dim=1).max()) <= 8.0 + 1e-6
        geometry = Coulomb(l_max=0, sigma=1.2).prepare(where, cell)
        found.append(charge_equilibration(geometry, chi, hardness, 0.3, widths=widths).charges)
    assert_close(found[1], found[0], 1e-8)
