"""Numbers known from elsewhere, and what energy, potential, features and fields are to one another."""

import json
import math
from pathlib import Path

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import BOUNDARIES, boundary_case
from scfmlip import Coulomb, GaussianMultipoles
from scfmlip.units import COULOMB_CONSTANT, CUBIC_MADELUNG

F64 = torch.float64
FRAMES = Path(__file__).parents[2].parent / "shared" / "reference" / "coulomb_frames.json"


def frames():
    found = json.loads(FRAMES.read_text())["frames"] if FRAMES.exists() else []
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/reference"))]


@pytest.mark.parametrize("frame", frames(), ids=lambda f: f["mode"] if f else "none")
def test_reference_frames(frame):
    """Energies published with a reference implementation; open ones with their exact values."""
    positions = torch.tensor(frame["positions"], dtype=F64)
    rows = torch.tensor(frame["density_q_dy_dz_dx"], dtype=F64)
    cell = torch.tensor(frame["lattice"], dtype=F64)
    isolated = frame["mode"] == "realspace"
    # residual charges of 2e-5 e: their slabs lack the terms of a net charge, ours hold them
    operator = Coulomb(
        sigma=frame["sigma"],
        order="e3nn",
        self_interaction=frame["include_self_interaction"],
        compat=None if isolated else "graph_longrange",
        kspace_cutoff=4.0,
    )
    energy = float(operator.prepare(positions, cell, frame["pbc"]).energy(rows))
    want = frame["analytic_open_boundary_energy_eV" if isolated else "electrostatic_energy_eV"]
    assert abs(energy - want) < 1e-8 * max(1.0, abs(want))
    dipole = (rows[:, :1] * positions + rows[:, [3, 1, 2]]).sum(0)
    assert float((dipole - torch.tensor(frame["dipole_xyz"], dtype=F64)).abs().max()) < 1e-6


# nearest neighbours at 1: lattice vectors, and places of +1 and -1
LATTICES = {
    "NaCl": ([[0, 1, 1], [1, 0, 1], [1, 1, 0]], [0, 0, 0], [1, 1, 1], 1.7475645946),
    "CsCl": ([[2, 0, 0], [0, 2, 0], [0, 0, 2]], [0, 0, 0], [1, 1, 1], 1.7626747731),
    "ZnS": ([[0, 2, 2], [2, 0, 2], [2, 2, 0]], [0, 0, 0], [1, 1, 1], 1.6380550534),
}


@pytest.mark.parametrize("sigma", [0.35, 0.5])
@pytest.mark.parametrize("name", LATTICES)
def test_madelung_constants(name, sigma):
    """Per pair of ions -k_e alpha / d for point charges: what Gaussians lack is added pair by pair."""
    lattice, plus, minus, madelung = LATTICES[name]
    lattice, plus, minus = (torch.tensor(v, dtype=F64) for v in (lattice, plus, minus))
    distance = 2.4
    unit = float((minus - plus).norm())
    if name == "NaCl":
        lattice, unit = 1.0 * lattice, 1.0
        minus = torch.tensor([1.0, 0, 0], dtype=F64)
    scale = distance / unit
    cell, plus, minus = scale * lattice, scale * plus, scale * minus
    if torch.linalg.det(cell) < 0:
        cell = cell[[1, 0, 2]]
    positions = torch.stack((plus, minus))
    rows = torch.tensor([[1.0], [-1.0]], dtype=F64)
    operator = Coulomb(l_max=0, sigma=sigma, tolerance=1e-11)
    energy = float(operator.prepare(positions, cell).energy(rows))
    n = torch.cartesian_prod(*(torch.arange(-5, 6, dtype=F64),) * 3) @ cell
    for i in range(2):
        for j in range(2):
            d = (positions[i] - positions[j] + n).norm(dim=1)
            d = d[d > 1e-9]
            missing = torch.special.erfc(d / (2 * sigma)) / d
            energy += float(0.5 * COULOMB_CONSTANT * rows[i, 0] * rows[j, 0] * missing.sum())
    assert abs(-energy * distance / COULOMB_CONSTANT - madelung) < 1e-8


def test_a_cube_of_one_charge():
    """A Gaussian in its uniform background: self-energy, Wigner's constant, and the Gaussian's own extent."""
    edge, sigma, q = 9.0, 0.85, 1.7  # images overlap by 1e-13
    operator = Coulomb(l_max=0, sigma=sigma, self_interaction=True, tolerance=1e-11)
    geometry = operator.prepare(torch.rand(1, 3, dtype=F64), edge * torch.eye(3, dtype=F64))
    self_energy = 1 / (math.sqrt(math.pi) * sigma)
    want = self_energy - CUBIC_MADELUNG / edge + 4 * math.pi * sigma**2 / edge**3
    energy = geometry.energy(torch.tensor([[q]], dtype=F64))
    assert abs(float(energy) - 0.5 * q**2 * COULOMB_CONSTANT * want) < 1e-8


def test_the_background_of_a_charged_crystal_is_uniform(generator):
    """A charge moved into the background costs a constant potential: energies of mean density 0."""
    case = boundary_case("charged crystal", generator)
    geometry = case.geometry()
    points = torch.cartesian_prod(*(torch.arange(9, dtype=F64) / 9,) * 3) @ case.cell
    values = geometry.at(points, case.rows)
    assert abs(float(values.potential.mean())) < 1e-10  # the zero of the potential is its mean
    refused = case.coulomb(background="none").prepare(case.positions, case.cell)
    with pytest.raises(ValueError, match="system 0 is periodic and carries a charge"):
        refused.energy(case.rows)


@pytest.mark.parametrize("distance", [0.0, 0.01, 0.7, 3.0, 20.0, 500.0])
def test_two_charges(distance):
    """Two Gaussians: ``k_e q1 q2 erf(d / 2 sigma) / d``."""
    sigma, q1, q2 = 0.9, 1.3, -0.7
    positions = torch.tensor([[0.0, 0, 0], [0.6, 0, 0.8]], dtype=F64) * distance
    rows = torch.tensor([[q1], [q2]], dtype=F64)
    energy = Coulomb(l_max=0, sigma=sigma).prepare(positions).energy(rows)
    reach = math.erf(distance / (2 * sigma)) / distance if distance else 1 / (sigma * math.sqrt(math.pi))
    assert_close(energy, torch.tensor([COULOMB_CONSTANT * q1 * q2 * reach], dtype=F64))


def test_dipoles_far_apart(generator):
    """Ten widths apart the Gaussians are points: charge-dipole and dipole-dipole laws."""
    r = torch.tensor([7.0, -6.0, 9.0], dtype=F64)
    q = torch.tensor([0.4, -1.1], dtype=F64)
    d = torch.randn(2, 3, generator=generator, dtype=F64)
    rows = torch.cat((q[:, None], d), 1)
    energy = Coulomb(sigma=0.9).prepare(torch.stack((torch.zeros(3), r))).energy(rows)
    n, e = r.norm(), r / r.norm()
    want = q[0] * q[1] / n
    want = want + (q[1] * (d[0] @ e) - q[0] * (d[1] @ e)) / n**2
    want = want + (d[0] @ d[1] - 3 * (d[0] @ e) * (d[1] @ e)) / n**3
    assert_close(energy, COULOMB_CONSTANT * want[None], 1e-11)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_potential_is_the_derivative_of_the_energy(name, self_interaction, generator):
    case = boundary_case(name, generator)
    rows = case.rows.requires_grad_()
    geometry = case.geometry(self_interaction=self_interaction)
    (gradient,) = torch.autograd.grad(geometry.energy(rows).sum(), rows)
    assert_close(geometry.potential(rows), gradient)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_the_operator_is_symmetric_and_the_energy_its_form(name, generator):
    """K from unit densities, one channel each: K = K^T and E = 1/2 p.K p, and no system sees another."""
    case = boundary_case(name, generator)
    # external fields are linear in p and have no matrix
    case.fields = {k: v for k, v in case.fields.items() if k == "counter_charge"}
    geometry = case.geometry()
    n = case.rows.numel()
    units = torch.eye(n, dtype=F64).view(n, -1, 4).transpose(0, 1).contiguous()
    matrix = geometry.potential(units).transpose(0, 1).reshape(n, n)
    assert_close(matrix, matrix.T)
    p = case.rows.flatten()
    assert_close(geometry.potential(case.rows).flatten(), matrix @ p)
    assert_close(geometry.energy(case.rows).sum(), 0.5 * p @ matrix @ p)
    if case.batch_idx is not None:
        system = case.batch_idx.repeat_interleave(4)
        assert not matrix[system[:, None] != system[None]].any()


@pytest.mark.parametrize("name", [n for n in BOUNDARIES if "counter" not in n])
def test_own_width_features_are_the_potential(name, generator):
    """Receiver over multipole normalisation: sqrt(4 pi) for l = 0, sqrt(3/2) pi sigma for l = 1."""
    case = boundary_case(name, generator)
    geometry = case.geometry()
    ratio = torch.tensor([math.sqrt(4 * math.pi)] + [math.sqrt(1.5) * math.pi * 1.5] * 3, dtype=F64)
    for with_self in (True, False):
        features = geometry.features(case.rows, widths=(1.5,), self_interaction=with_self)
        assert_close(features, ratio * geometry.potential(case.rows, self_interaction=with_self))


@pytest.mark.parametrize("order", ["cartesian", "e3nn"])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_channels_are_independent(name, order, generator):
    case = boundary_case(name, generator)
    geometry = case.geometry(order=order)
    both = torch.stack((case.rows, case.rows.flip(0) + 0.1), 1)
    for method in (geometry.energy, geometry.potential, geometry.features):
        together = method(both)
        for c in range(2):
            assert_close(together[:, c], method(both[:, c].contiguous()))


@pytest.mark.parametrize("name", BOUNDARIES)
def test_component_order_is_a_permutation(name, generator):
    case = boundary_case(name, generator)
    rows = case.rows[:, [0, 2, 3, 1]]
    plain, permuted = case.geometry(), case.geometry(order="e3nn")
    assert_close(permuted.energy(rows), plain.energy(case.rows))
    assert_close(permuted.potential(rows), plain.potential(case.rows)[:, [0, 2, 3, 1]])
    features = plain.features(case.rows, widths=(1.5, 2.5))
    order = [0, 1, 3, 4, 2, 6, 7, 5]
    assert_close(permuted.features(rows, widths=(1.5, 2.5)), features[:, order])


@pytest.mark.parametrize("name", BOUNDARIES)
def test_charges_only_are_dipoles_of_zero(name, generator):
    case = boundary_case(name, generator)
    charges = case.rows[:, :1].contiguous()
    rows = torch.cat((charges, torch.zeros(len(charges), 3, dtype=F64)), 1)
    small, large = case.geometry(l_max=0, kspace_cutoff=3.5), case.geometry(kspace_cutoff=3.5)
    assert_close(small.energy(charges), large.energy(rows))
    assert_close(small.potential(charges), large.potential(rows)[:, :1])
    assert_close(small.features(charges, l_max=1), large.features(rows, widths=(1.5,), l_max=1))


@pytest.mark.parametrize("name", [n for n in BOUNDARIES if "counter" not in n])
def test_several_widths_superpose(name, generator):
    """Two densities of widths 1.2 and 1.9: their own energies, and one in the other's potential."""
    case = boundary_case(name, generator)
    case.fields = {}
    first, second = case.rows, case.rows.roll(1, 0) * 0.7
    options = {"kspace_cutoff": 4.5, "self_interaction": True}
    both = case.geometry(sigma=(1.2, 1.9), **options)
    rows = torch.cat((first[:, :1], second[:, :1], first[:, 1:], second[:, 1:]), 1)
    narrow, wide = case.geometry(sigma=1.2, **options), case.geometry(sigma=1.9, **options)
    receiver = GaussianMultipoles(1, (1.2,), "receiver")
    ratio = receiver.to_moments(torch.ones(1, 4, dtype=F64))[0]
    cross = wide.features(second, widths=(1.2,)) / ratio
    per_atom = (first * cross).sum(1)
    index = torch.zeros(len(first), dtype=torch.int64) if case.batch_idx is None else case.batch_idx
    want = narrow.energy(first) + wide.energy(second)
    want = want.index_add(0, index, per_atom)
    assert_close(both.energy(rows), want, 1e-11)
    potential = both.potential(rows)
    mine = narrow.potential(first) + cross
    assert_close(potential[:, [0, 2, 3, 4]], mine, 1e-11)


@pytest.mark.parametrize("name", ["slab", "molecule"])
@pytest.mark.parametrize("compat", [None, "graph_longrange"])
def test_external_field(name, compat, generator):
    """Energy - dipole . field and force + q E; graph_longrange has the opposite sign of both."""
    case = boundary_case(name, generator, n_atoms=3)
    if name == "slab":
        case.cell = torch.diag(torch.tensor([6.0, 6.0, 60.0], dtype=F64))
    field = torch.tensor([0.0, 0.0, 0.8], dtype=F64)
    sign = 1.0 if compat else -1.0
    operator = case.coulomb(compat=compat)
    r = case.positions.clone().requires_grad_()
    arguments = (r, case.cell, case.pbc)
    change = operator.prepare(*arguments, external_field=field).energy(case.rows)
    change = change - operator.prepare(*arguments).energy(case.rows)
    dipole = (case.rows[:, :1] * r + case.rows[:, 1:]).sum(0)
    assert_close(change, sign * (dipole @ field)[None], 1e-11)
    (gradient,) = torch.autograd.grad(change.sum(), r)
    assert_close(-gradient, -sign * case.rows[:, :1] * field, 1e-11)
    potential = operator.prepare(*arguments, external_field=field).potential(case.rows)
    potential = potential - operator.prepare(*arguments).potential(case.rows)
    assert_close(potential[:, 0], sign * r @ field, 1e-11)
    assert_close(potential[:, 1:], sign * field.expand(3, 3), 1e-11)


@pytest.mark.parametrize("name", [n for n in BOUNDARIES if "field" not in n])
def test_external_potential_adds_to_every_charge(name, generator):
    """+ V Q per system, + V on every potential, sqrt(4 pi) V on every l = 0 feature."""
    case = boundary_case(name, generator)
    plain = case.geometry()
    index = torch.zeros(len(case.rows), dtype=torch.int64) if case.batch_idx is None else case.batch_idx
    n_systems = int(index.max()) + 1
    volts = torch.linspace(0.5, 2.0, n_systems, dtype=F64)
    case.fields = {**case.fields, "external_potential": volts}
    shifted = case.geometry()
    charge = torch.zeros(n_systems, dtype=F64).index_add(0, index, case.rows[:, 0])
    assert_close(shifted.energy(case.rows), plain.energy(case.rows) + volts * charge)
    shift = torch.zeros_like(case.rows)
    shift[:, 0] = volts[index]
    assert_close(shifted.potential(case.rows), plain.potential(case.rows) + shift)
    features = plain.features(case.rows, widths=(1.5, 3.0))
    features[:, :2] += math.sqrt(4 * math.pi) * volts[index, None]
    assert_close(shifted.features(case.rows, widths=(1.5, 3.0)), features)


def test_features_see_a_field(generator):
    """sqrt(3/2) pi width grad V_ext = -E on l = 1, sqrt(4 pi) times the potential at the atom on l = 0."""
    case = boundary_case("molecule in a field", generator)
    with_field = case.geometry().features(case.rows, widths=(1.5, 3.0))
    field, volts = case.fields["external_field"], case.fields["external_potential"]
    case.fields = {}
    difference = with_field - case.geometry().features(case.rows, widths=(1.5, 3.0))
    level = math.sqrt(4 * math.pi) * (volts - case.positions @ field)
    assert_close(difference[:, :2], level[:, None].expand(-1, 2), 1e-11)
    for w, width in enumerate((1.5, 3.0)):
        want = -math.sqrt(1.5) * math.pi * width * field
        assert_close(difference[:, 2 + 3 * w : 5 + 3 * w], want.expand(4, 3), 1e-11)


def test_compat_agrees_where_there_are_no_quirks(generator):
    """A crystal, and a neutral slab along z, are the same sums under both names."""
    for name in ("crystal", "slab"):
        case = boundary_case(name, generator)
        if name == "slab":
            case.cell = torch.diag(torch.tensor([6.0, 6.0, 60.0], dtype=F64))
        exact = case.geometry(kspace_cutoff=4.0, self_interaction=True)
        compat = case.geometry(kspace_cutoff=4.0, self_interaction=True, compat="graph_longrange")
        assert_close(compat.energy(case.rows), exact.energy(case.rows), 1e-11)
        # the derivative of a net charge's energy is a constant where the net charge is 0
        difference = compat.potential(case.rows) - exact.potential(case.rows)
        difference[:, 0] -= difference[0, 0].clone()
        assert float(difference.abs().max()) < 1e-11
