"""float32 against float64 at the same, float32, positions: relative errors of a few roundings, any size."""

import pytest
import torch

from electrostatics.systems import CRYSTAL, ISOLATED, SLAB, random_batch
from scfmlip import Coulomb

F64 = torch.float64
ENERGY = 3e-6  # relative to the energy itself, self-interaction included
FORCES = 3e-6  # relative to their root mean square

KINDS = {
    "crystal": (CRYSTAL, {}, {}),
    "slab": (SLAB, {}, {}),
    "slab in a field": (SLAB, {}, {"external_field": (0.0, 0.0, 0.3)}),
    "slab with a counter-charge": (SLAB, {}, {"counter_charge": (0.5, 4.0)}),
    "molecule in a box": (ISOLATED, {"boundary": "molecule_in_box"}, {}),
    "molecule": (ISOLATED, {}, {}),
    "molecule in a field": (ISOLATED, {}, {"external_field": (0.1, -0.2, 0.3)}),
}


def both(positions, cell, rows, kind, features=True):
    """Energy, forces, potential and features in both dtypes from the same float32 numbers."""
    pbc, options, fields = KINDS[kind]
    found = []
    for dtype in (torch.float32, F64):
        r = positions.float().to(dtype).requires_grad_()
        p, c = rows.float().to(dtype), cell.float().to(dtype)
        geometry = Coulomb(self_interaction=True, **options).prepare(r, c, pbc, **fields)
        energy = geometry.energy(p)
        (gradient,) = torch.autograd.grad(energy.sum(), r)
        parts = [energy.detach(), gradient]
        if features:
            parts += [geometry.potential(p).detach(), geometry.features(p, widths=(1.5, 3.0)).detach()]
        assert all(x.dtype == dtype for x in parts)
        found.append(parts)
    return found


def assert_accurate(found, net_force=True):
    (energy, gradient, *rest), (energy64, gradient64, *rest64) = found
    assert abs(float(energy) / float(energy64) - 1) < ENERGY
    rms = float(gradient64.square().mean().sqrt())
    if net_force:
        assert float((gradient - gradient64).square().mean().sqrt()) < FORCES * rms
    for got, want in zip(rest, rest64, strict=True):
        assert float((got - want).square().mean().sqrt()) < FORCES * float(want.square().mean().sqrt())


@pytest.mark.parametrize("net_charge", [False, True])
@pytest.mark.parametrize("n_atoms", [1, 10, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind, n_atoms, net_charge, generator):
    triclinic = 0.3 if kind in ("crystal", "molecule") else 0.0
    positions, cells, _, rows = random_batch([n_atoms], generator, triclinic, net_charge)
    # one atom feels nothing but rounding, unless there is a field
    assert_accurate(both(positions, cells[0], rows, kind), net_force=n_atoms > 1)


@pytest.mark.parametrize("kind", ["crystal", "slab in a field", "slab with a counter-charge", "molecule"])
def test_a_thousand_atoms(kind, generator):
    positions, cells, _, rows = random_batch([1000], generator)
    assert_accurate(both(positions, cells[0], rows, kind, features=False))


@pytest.mark.slow  # 20,000 atoms times 36,000 wave vectors in float64: a minute
def test_twenty_thousand_atoms(generator):
    positions, cells, _, rows = random_batch([20_000], generator, net_charge=True)
    assert_accurate(both(positions, cells[0], rows, "crystal", features=False))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["crystal", "slab", "molecule"])
def test_a_long_thin_cell(kind, axis, generator):
    """215 angstrom: phases of k.r in float32 would be off by 1e-4."""
    if kind == "slab" and axis == 2:
        pytest.skip("atoms all along the open axis are no slab")
    cell = torch.full((3,), 6.0, dtype=F64)
    cell[axis] = 215.0
    cell = torch.diag(cell)
    positions = torch.rand(200, 3, generator=generator, dtype=F64) @ cell
    rows = torch.randn(200, 4, generator=generator, dtype=F64) * torch.tensor([0.5, 0.2, 0.2, 0.2])
    assert_accurate(both(positions, cell, rows, kind))


@pytest.mark.parametrize(
    "kind", ["crystal", "slab", "slab in a field", "molecule in a box", "molecule in a field"]
)
def test_far_from_the_origin(kind, generator):
    """An engine's unwrapped coordinates: the same rounded positions give the same numbers."""
    cell = 9 * torch.eye(3, dtype=F64)
    positions = 5 * torch.rand(8, 3, generator=generator, dtype=F64) + torch.tensor([900.0, -450.0, 450.0])
    rows = torch.randn(8, 4, generator=generator, dtype=F64) * torch.tensor([0.5, 0.2, 0.2, 0.2])
    rows[:, 0] -= rows[:, 0].mean()
    assert_accurate(both(positions, cell, rows, kind))


def test_stress(generator):
    """Relative to its own largest component, in a sheared cell."""
    positions, cells, _, rows = random_batch([100], generator, 0.4)
    found = []
    for dtype in (torch.float32, F64):
        strain = torch.zeros(3, 3, dtype=dtype, requires_grad=True)
        deformation = torch.eye(3, dtype=dtype) + strain
        r, c = (x.float().to(dtype) @ deformation for x in (positions, cells[0]))
        energy = Coulomb(self_interaction=True).prepare(r, c).energy(rows.float().to(dtype))
        found.append(torch.autograd.grad(energy.sum(), strain)[0])
    assert float((found[0] - found[1]).abs().max() / found[1].abs().max()) < FORCES


def test_second_derivatives(generator):
    """What a force loss trains with."""
    positions, cells, _, rows = random_batch([50], generator, 0.3)
    for pbc in (CRYSTAL, ISOLATED):
        found = []
        for dtype in (torch.float32, F64):
            r, p, c = (x.float().to(dtype) for x in (positions, rows, cells[0]))
            r.requires_grad_()
            p.requires_grad_()
            energy = Coulomb(self_interaction=True).prepare(r, c, pbc).energy(p).sum()
            (gradient,) = torch.autograd.grad(energy, r, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), (r, p)))
        for got, want in zip(*found, strict=True):
            error = (got - want).square().mean().sqrt() / want.square().mean().sqrt()
            assert float(error) < FORCES


def test_energy_differences_in_md(generator):
    """Moving one atom by 1e-3 angstrom in a thousand: the change of the energy survives to 1 per cent."""
    positions, cells, _, rows = random_batch([1000], generator)
    changes = []
    for dtype in (torch.float32, F64):
        operator = Coulomb()
        p, c = rows.float().to(dtype), cells[0].float().to(dtype)
        r = positions.float().to(dtype)
        moved = r.clone()
        moved[17, 0] += 2.0**-6
        energies = [operator.prepare(x, c).energy(p).double() for x in (r, moved)]
        changes.append(float(energies[1] - energies[0]))
    # float32 energies of 1e3 eV are multiples of 6e-5 eV
    assert abs(changes[0] - changes[1]) < 2 * 2.0**-24 * 4096
