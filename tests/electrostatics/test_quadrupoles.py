"""Quadrupoles: clusters of charges, e3nn's harmonics, rotations and derivatives, in every boundary."""

import math

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import CRYSTAL, ISOLATED, SLAB
from scfmlip import Coulomb
from scfmlip.electrostatics.density import (
    quadrupole_components,
    quadrupole_tensors,
    symmetric_coefficients,
    symmetric_matrices,
)
from scfmlip.units import FIELD_CONSTANT

F64 = torch.float64
CELL = torch.tensor([[6.0, 0.3, 0.0], [1.0, 7.0, 0.4], [0.5, -1.0, 8.0]], dtype=F64)
FLAT = torch.tensor([[6.0, 0.0, 0.0], [1.0, 7.0, 0.0], [0.0, 0.0, 12.0]], dtype=F64)
CUBE = 14 * torch.eye(3, dtype=F64)
PLACES = torch.tensor([[0.3, 0.1, 0.2], [2.1, 0.8, -1.1], [3.9, 2.7, 0.9]], dtype=F64)
SETTINGS = {
    "crystal": (CELL, CRYSTAL, {}),
    "crystal through a mesh": (CELL, CRYSTAL, {"method": "mesh", "tolerance": 1e-11}),
    "slab": (FLAT, SLAB, {}),
    "slab through a mesh": (FLAT, SLAB, {"method": "mesh", "tolerance": 1e-11}),
    "box": (CUBE, ISOLATED, {"boundary": "molecule_in_box"}),
    "molecule": (None, ISOLATED, {}),
}


def make_rows(generator, n=3, neutral=False):
    rows = torch.randn(n, 9, generator=generator, dtype=F64)
    if neutral:
        rows[:, 0] -= rows[:, 0].mean()
    return rows


def cluster(rows, positions, step):
    """Point charges with the same moments, differences of second order in ``step``."""
    steps = step * torch.eye(3, dtype=F64)
    tensors = quadrupole_tensors(rows[:, 4:])
    places, charges = [positions], [rows[:, 0]]
    for a in range(3):
        for sign in (1, -1):
            places.append(positions + sign * steps[a])
            charges.append(sign * rows[:, 1 + a] / (2 * step))
            for b in range(3):
                for other in (1, -1):
                    places.append(positions + sign * steps[a] + other * steps[b])
                    charges.append(sign * other * tensors[:, a, b] / (12 * step**2))
    return torch.cat(places), torch.cat(charges)[:, None]


def extrapolated(function):
    """Of a function of the step with errors of order step^2."""
    return (4 * function(0.005) - function(0.01)) / 3


@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_the_limit_of_charges(name, generator):
    """Energy, potential and field at points and the density, self-interaction included."""
    cell, pbc, options = SETTINGS[name]
    rows = make_rows(generator, neutral=name == "box")
    options = {"sigma": 0.9, "self_interaction": True, "tolerance": 1e-12, **options}
    geometry = Coulomb(l_max=2, **options).prepare(PLACES, cell, pbc)
    charges_only = Coulomb(l_max=0, **{**options, "method": "auto"})
    points = torch.tensor([[1.0, 1.0, 0.5], [3.0, 2.0, 0.0], [0.3, 0.1, 0.2]], dtype=F64)

    def parts(step):
        places, charges = cluster(rows, PLACES, step)
        other = charges_only.prepare(places, cell, pbc)
        at = other.at(points, charges)
        return torch.cat((other.energy(charges), at.potential, at.field.flatten(), at.density))

    at = geometry.at(points, rows)
    got = torch.cat((geometry.energy(rows), at.potential, at.field.flatten(), at.density))
    assert_close(got, extrapolated(parts), 3e-7)  # of differences of order step^4, and 1e-16 / step^2


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("order", ["cartesian", "e3nn"])
def test_potentials_and_features_are_conjugate(name, order, generator):
    """``potential`` is dE/dp; ``features`` are potentials at another operator's sources."""
    cell, pbc, options = SETTINGS[name]
    rows = make_rows(generator, neutral=name == "box").requires_grad_()
    operator = Coulomb(l_max=2, sigma=1.0, order=order, feature_widths=[1.4], **options)
    geometry = operator.prepare(PLACES, cell, pbc)
    (slope,) = torch.autograd.grad(geometry.energy(rows).sum(), rows)
    assert_close(geometry.potential(rows), slope, 1e-11)
    both = Coulomb(l_max=2, sigma=[1.0, 1.4], order=order, **options).prepare(PLACES, cell, pbc)
    columns = both.coulomb.source.columns()
    wide = torch.zeros(3, 18, dtype=F64)
    wide[:, columns[0]] = rows.detach()
    want = both.potential(wide, self_interaction=True)[:, columns[1]]
    scales = [math.sqrt(4 * math.pi), math.sqrt(1.5) * math.pi * 1.4, 2 * math.sqrt(5 * math.pi) * 1.4**2]
    ratio = torch.tensor(scales, dtype=F64).repeat_interleave(torch.tensor([1, 3, 5]))
    got = geometry.features(rows.detach(), self_interaction=True)
    assert_close(got, want * ratio, 1e-9)  # meshes of two operators differ


def test_components_are_e3nns(generator):
    """Structure factors by e3nn's real harmonics of (y, z, x), as graph_longrange calls them."""
    pytest.importorskip("mace", reason="mace-torch sets e3nn 0.4.4 up for a new torch")
    o3 = pytest.importorskip("e3nn.o3")
    rows, sigma = make_rows(generator), 1.1
    operator = Coulomb(l_max=2, sigma=sigma, order="e3nn", self_interaction=True, tolerance=1e-12)
    got = operator.prepare(PLACES, CELL, CRYSTAL).energy(rows)
    n = torch.arange(-12, 13, dtype=F64)
    k = torch.cartesian_prod(n, n, n) @ (2 * math.pi * torch.linalg.inv(CELL).T)
    k = k[(k.norm(dim=1) > 0) & (k.norm(dim=1) < 7.0)]
    harmonics = o3.spherical_harmonics([0, 1, 2], k[:, [1, 2, 0]], normalize=False, normalization="norm")
    # (-i k)^l C_lm / (2 l - 1)!!
    weight = torch.tensor([1.0] + [1.0] * 3 + [1 / 3] * 5, dtype=F64) * harmonics.double()
    phase = torch.exp(-1j * (k @ PLACES.T))
    power = torch.tensor([1.0] + [-1j] * 3 + [-1.0] * 5, dtype=torch.complex128)
    density = ((weight * power)[:, None, :] * rows[None] * phase[..., None]).sum((1, 2))
    squared = (k**2).sum(1)
    volume = torch.linalg.det(CELL)
    terms = density.abs() ** 2 * torch.exp(-(sigma**2) * squared) / squared
    assert_close(got, (0.5 * FIELD_CONSTANT / volume * terms.sum())[None], 1e-11)


def test_tensors_and_components(generator):
    components = torch.randn(4, 5, generator=generator, dtype=F64)
    tensors = quadrupole_tensors(components)
    assert_close(quadrupole_components(tensors), components)
    assert float(tensors.diagonal(dim1=1, dim2=2).sum(1).abs().max()) < 1e-14
    shifted = tensors + 0.7 * torch.eye(3, dtype=F64)
    assert_close(quadrupole_components(shifted), components)
    six = torch.randn(4, 6, generator=generator, dtype=F64)
    assert_close(symmetric_coefficients(symmetric_matrices(six)), six)
    with pytest.raises(ValueError, match=r"components must be \[..., 5\]"):
        quadrupole_tensors(six)
    with pytest.raises(ValueError, match=r"tensors must be \[..., 3, 3\]"):
        quadrupole_components(six)
    # a charge of 2 e at (0, 0, 3): Theta_zz = 2 * 9
    charge = torch.diag(torch.tensor([-9.0, -9.0, 18.0], dtype=F64))
    assert_close(quadrupole_components(charge), torch.tensor([0.0, 0.0, 18.0, 0.0, 0.0], dtype=F64))


@pytest.mark.parametrize("name", ["crystal", "slab", "molecule"])
def test_rotations(name, generator):
    """A turned system has the same energy, turned potentials."""
    cell, pbc, options = SETTINGS[name]
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))
    turn = turn * torch.linalg.det(turn)
    rows = make_rows(generator)
    tensors = turn.T @ quadrupole_tensors(rows[:, 4:]) @ turn
    turned = torch.cat((rows[:, :1], rows[:, 1:4] @ turn, quadrupole_components(tensors)), 1)
    operator = Coulomb(l_max=2, sigma=1.0, tolerance=1e-11, **options)
    one = operator.prepare(PLACES, cell, pbc)
    other = operator.prepare(PLACES @ turn, None if cell is None else cell @ turn, pbc)
    assert_close(other.energy(turned), one.energy(rows), 1e-10)
    here, there = one.potential(rows), other.potential(turned)
    assert_close(there[:, 1:4], here[:, 1:4] @ turn, 1e-9)
    want = turn.T @ quadrupole_tensors(here[:, 4:]) @ turn
    assert_close(quadrupole_tensors(there[:, 4:]), want, 1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_derivatives(name, generator):
    """Of energies, potentials and features in positions, cell and multipoles, first and second."""
    cell, pbc, options = SETTINGS[name]
    places, rows = PLACES[:2], make_rows(generator, 2, neutral=name == "box")
    options = {"sigma": 1.2, "feature_widths": [1.5], **options, "tolerance": 1e-6}
    operator = Coulomb(l_max=2, **options)
    plan = operator.plan(cell, pbc, None, 2, positions=places)
    like = CELL if cell is None else cell
    strain = torch.zeros(3, 3, dtype=F64)
    if name == "slab through a mesh" or name == "box":
        strain = None

    def values(positions, rows, strain=None):
        deformed = None if cell is None else like
        if strain is not None and cell is not None:
            deformation = torch.eye(3, dtype=F64) + strain
            positions, deformed = positions @ deformation, like @ deformation
        geometry = operator.prepare(positions, deformed, plan=plan)
        return geometry.energy(rows), geometry.potential(rows), geometry.features(rows)

    leaves = [places, rows] if strain is None else [places, rows, strain]
    leaves = [x.clone().requires_grad_() for x in leaves]
    object.__setattr__(operator, "validate", False)  # a strained slab
    assert torch.autograd.gradcheck(values, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda *x: values(*x)[0], leaves, fast_mode=True, atol=1e-6
    )  # differences of first derivatives


def test_a_counter_charge_and_a_field(generator):
    """A charged slab with its counter-charge: dE/dp, and neither height nor place matter."""
    rows = make_rows(generator).requires_grad_()
    operator = Coulomb(l_max=2, sigma=1.0)
    options = {"counter_charge": [8.0, 12.0], "external_field": torch.tensor([0.0, 0.0, 0.2], dtype=F64)}
    geometry = operator.prepare(PLACES, FLAT, SLAB, **options)
    (slope,) = torch.autograd.grad(geometry.energy(rows).sum(), rows)
    assert_close(geometry.potential(rows), slope, 1e-11)
    up = torch.tensor([0.0, 0.0, 2.5], dtype=F64)
    moved = operator.prepare(PLACES + up, FLAT, SLAB, **{**options, "counter_charge": [10.5, 14.5]})
    assert_close(moved.energy(rows), geometry.energy(rows), 1e-9)
    assert_close(moved.features(rows), geometry.features(rows), 1e-9)


def test_float32_and_batches(generator):
    """A ragged batch is its systems one by one; float32 agrees."""
    rows = make_rows(generator, 6)
    operator = Coulomb(l_max=2, sigma=1.0)
    cells, pbc = torch.stack((CELL, FLAT)), torch.tensor([CRYSTAL, SLAB])
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    both = torch.cat((PLACES, PLACES + 0.1))
    batch = operator.prepare(both, cells, pbc, index)
    alone = [operator.prepare(both[3 * i : 3 * i + 3], cells[i], pbc[i]) for i in range(2)]
    want = torch.cat([g.potential(rows[3 * i : 3 * i + 3]) for i, g in enumerate(alone)])
    assert_close(batch.potential(rows), want, 1e-11)
    single = operator.prepare(both.float(), cells.float(), pbc, index)
    assert_close(single.potential(rows.float()), want, 3e-6)  # second derivatives of rounded phases
    assert_close(single.energy(rows.float()), batch.energy(rows), 3e-6)


def test_what_does_not_know_them():
    with pytest.raises(ValueError, match=r"compat='graph_longrange' knows charges and dipoles"):
        Coulomb(l_max=2, compat="graph_longrange")
    geometry = Coulomb(l_max=1, compat="graph_longrange").prepare(PLACES, CELL, CRYSTAL)
    with pytest.raises(ValueError, match="features up to l_max=1"):
        geometry.features(torch.zeros(3, 4, dtype=F64), [1.5], 2)
    with pytest.raises(ValueError, match="l_max must be 0, 1 or 2"):
        Coulomb(l_max=3)
