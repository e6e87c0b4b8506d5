"""The tolerance asked for is the tolerance got."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from electrostatics.systems import CRYSTAL, SLAB
from scfmlip import Coulomb
from scfmlip.electrostatics.mesh_error import choose_mesh, largest_spacing, mesh_error

F64 = torch.float64


def scales(operator):
    """A charge of 1 e, dipoles of 1 e times the width, quadrupoles of 1 e times its square."""
    sigma = operator.sigma
    return torch.tensor([1.0] + 3 * [sigma] + 5 * [sigma**2], dtype=F64)[: operator.source.dim]


def interactions(operator, positions, cell, pbc):
    """Energies of all pairs of unit multipoles: charges of 1 e, dipoles of 1 e times the width, and so on."""
    n, dim = len(positions), operator.source.dim
    scale = scales(operator)
    unit = torch.eye(n * dim, dtype=F64).view(n, dim, n * dim).transpose(1, 2) * scale
    geometry = operator.prepare(positions, cell, pbc)
    dtype = positions.dtype
    return geometry.potential(unit.to(dtype), self_interaction=True).double() * scale


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@given(data=st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_errors_are_below_the_tolerance(data, dtype):
    """Random cells, places, widths, multipoles and tolerances; the direct sum at a thousandth of it."""
    tolerance = 10 ** -data.draw(st.floats(3, 8 if dtype == F64 else 6))
    sigma, l_max = data.draw(st.floats(0.8, 2.0)), data.draw(st.sampled_from([0, 1, 2]))
    edge, skew = data.draw(st.floats(2.0, 9.0)) * sigma, data.draw(st.floats(0.0, 0.3))
    pbc = data.draw(st.sampled_from([CRYSTAL, SLAB]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    cell = edge * (torch.eye(3, dtype=F64) + skew * (torch.rand(3, 3, generator=generator, dtype=F64) - 0.5))
    positions = torch.rand(5, 3, generator=generator, dtype=F64) @ cell
    positions[1] = positions[0] + 0.1
    options = {"l_max": l_max, "sigma": sigma}
    want = interactions(Coulomb(tolerance=1e-3 * tolerance, **options), positions, cell, pbc)
    operator = Coulomb(tolerance=tolerance, method="mesh", **options)
    got = interactions(operator, positions.to(dtype), cell.to(dtype), pbc)
    assert float((got - want).abs().max()) < tolerance + 4 * torch.finfo(dtype).eps * float(want.abs().max())
    # of a density: errors of pairs have either sign
    rows = torch.randn(5, operator.source.dim, generator=generator, dtype=F64) * scales(operator)
    energies = [
        c.prepare(positions, cell, pbc).energy(rows, self_interaction=True)
        for c in (operator, Coulomb(tolerance=1e-3 * tolerance, **options))
    ]
    weight = float((rows**2).sum()) / min(1.0, sigma**2)
    assert float((energies[0] - energies[1]).abs()) < tolerance * weight


def test_estimates(generator):
    """Steep in the spacing, the same for scaled systems, and inverted by the spacing that is looked for."""
    for order in (6, 8, 10, 12):
        ratio = mesh_error(1.0, order, 0.4, 0) / mesh_error(1.0, order, 0.2, 0)
        assert 0.8 * 2**order < ratio < 3 * 2**order
        assert mesh_error(4.0, order, 0.8, 1) == pytest.approx(0.5 * mesh_error(1.0, order, 0.4, 1))
        spacing = largest_spacing(1.0, order, 1e-5, 1)
        assert mesh_error(1.0, order, spacing, 1) == pytest.approx(1e-5, rel=1e-3)


def test_choices():
    """Tighter tolerances take higher orders; more room for each atom does, too."""
    loose, tight = (choose_mesh(2.25, t, 1, 1000, 1e4, 20.0) for t in (1e-2, 1e-10))
    assert loose.order < tight.order
    assert loose.spacing > tight.spacing
    crowded, dilute = (choose_mesh(2.25, 1e-6, 1, 1000, v, 20.0) for v in (1e3, 1e6))
    assert crowded.order < dilute.order
    assert crowded.spacing < dilute.spacing
