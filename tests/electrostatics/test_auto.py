"""What method="auto" picks, that it says so, and that it keeps the tolerance."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tolerances import assert_close

from electrostatics.systems import CRYSTAL, ISOLATED, SLAB, random_batch
from scfmlip import Coulomb
from scfmlip.electrostatics import choice

F64 = torch.float64
pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")


def lattice(n, sigma=1.0, spacing=2.15):
    """n^3 atoms on a jittered lattice, charges that add up to 0 and dipoles of about 1 e times the width."""
    generator = torch.Generator().manual_seed(0)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=F64),) * 3) * spacing
    places = places + 0.4 * torch.rand(n**3, 3, generator=generator, dtype=F64)
    rows = torch.randn(n**3, 4, generator=generator, dtype=F64)
    rows[:, 0] -= rows[:, 0].mean()
    rows[:, 1:] *= sigma
    return places, n * spacing * torch.eye(3, dtype=F64), rows


def test_small_systems_are_summed_as_ever(generator):
    """Bit by bit, under every periodic boundary and in batches."""
    positions, cell, index, rows = random_batch([5, 9, 3], generator, 0.3)
    flags = [CRYSTAL, SLAB, ISOLATED]
    assert Coulomb().method == "auto"
    for options in ({}, {"sigma": 0.5}, {"sigma": (0.6, 1.5), "l_max": 0}):
        mine = rows if not options else rows[:, :4] if "l_max" not in options else rows[:, :2]
        where = (positions, cell, flags, index)
        auto, direct = (Coulomb(method=m, **options).prepare(*where) for m in ("auto", "direct"))
        assert auto.method == auto.plan.method == ["direct", "direct", "pairs"]
        assert auto.smooth_width is None
        assert torch.equal(auto.energy(mine), direct.energy(mine))
        assert torch.equal(auto.features(mine), direct.features(mine))


@pytest.mark.parametrize(
    ("n", "sigma", "method", "split"),
    [
        (6, 1.5, "direct", False),
        (6, 0.1, "direct", True),
        (14, 1.0, "mesh", False),
        (12, 0.3, "mesh", True),
    ],
)
def test_what_is_picked(n, sigma, method, split):
    """Wide Gaussians of many atoms go through a mesh, narrow ones are split; forces are right."""
    positions, cell, rows = lattice(n, sigma)
    forces = []
    for options in ({}, {"method": "mesh", "tolerance": 1e-9}):
        r = positions.clone().requires_grad_()
        geometry = Coulomb(sigma=sigma, **options).prepare(r, cell)
        forces.append(torch.autograd.grad(geometry.energy(rows).sum(), r)[0])
        if not options:
            assert geometry.method == [method]
            assert (geometry.smooth_width is not None) == split
    assert_close(*forces, 1e-5)


@pytest.mark.parametrize("method", ["auto", "mesh"])
def test_float32(method):
    """A way that float32 is accurate enough for, where there is one; else the number that it can give."""
    positions, cell, rows = lattice(8, 0.1)
    want = Coulomb(sigma=0.1, tolerance=1e-9).prepare(positions, cell).potential(rows)
    single = [x.float() for x in (positions, cell, rows)]
    for tolerance in (1e-5, 1e-6):
        operator = Coulomb(sigma=0.1, method=method, tolerance=tolerance)
        geometry = operator.prepare(*single[:2])
        assert geometry.smooth_width
        assert_close(geometry.potential(single[2]), want, 1e-5)
        operator.prepare(*single[:2], plan=operator.plan(single[1], None, None, 512))
    if method == "mesh":
        with pytest.raises(
            ValueError, match=r"float32 .* tolerance of at least \d.\de-07 eV, or use float64"
        ):
            Coulomb(sigma=0.1, method=method, tolerance=1e-8).prepare(*single[:2])


def test_slabs_and_batches():
    """One way for the systems of a batch; a slab's neighbours lie in its plane."""
    positions, cell, rows = lattice(9, 0.3)
    index = torch.arange(2).repeat_interleave(729)
    both, cells = torch.cat((positions, positions + 0.1)), torch.stack((cell, cell))
    operator = Coulomb(sigma=0.3)
    geometry = operator.prepare(both, cells, [CRYSTAL, SLAB], index)
    assert geometry.method == ["mesh", "mesh"]
    assert geometry.smooth_width
    for i, pbc in enumerate((CRYSTAL, SLAB)):
        alone = operator.prepare(both[index == i], cell, pbc)
        energy = geometry.energy(torch.cat((rows, rows)))[i : i + 1]
        assert_close(energy, alone.energy(rows), 1e-6)


def test_where_nothing_was_measured(monkeypatch):
    """A GPU without a table sums wave by wave; as asked for where that is asked for."""
    positions, cell, _ = lattice(12)
    costs = dict.fromkeys(("direct", "wave", "table", "mesh", "point", "near", "pair"), 1.0)
    table = {"measured": False, "charges": costs, "dipoles": costs}
    monkeypatch.setattr(choice, "tuned", lambda family, device, dtype: table)
    assert Coulomb(sigma=0.3).plan(cell, None, None, len(positions)).method == ["direct"]
    plan = Coulomb(sigma=0.3, smooth=0.8).plan(cell, None, None, len(positions))
    assert plan.smooth_width == 0.8


def test_without_matscipy(monkeypatch):
    """Nothing is split by itself."""
    positions, cell, _ = lattice(12)
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    plan = Coulomb(sigma=0.3).plan(cell, None, None, len(positions))
    assert plan.method == ["mesh"]
    assert plan.smooth_width is None


def test_options_that_say_how():
    """Reference cutoffs and compatibility keep the direct sum, whatever it costs."""
    positions, cell, _ = lattice(12)
    for options in ({"kspace_cutoff": 12.0}, {"compat": "graph_longrange"}, {"compat": "les"}):
        plan = Coulomb(sigma=0.5, **options).plan(cell, None, None, len(positions))
        assert plan.method == ["direct"]
        assert plan.smooth_width is None


def test_mapped_positions():
    """torch.vmap cannot look for neighbours: the mesh as it is."""
    positions, cell, rows = lattice(6, 0.1)
    operator = Coulomb(sigma=0.1, tolerance=1e-4)
    assert operator.prepare(positions, cell).smooth_width
    mapped = torch.vmap(lambda r: operator.prepare(r, cell).energy(rows))(positions[None])
    assert_close(mapped[0], operator.prepare(positions, cell).energy(rows), 1e-3)


@given(data=st.data())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_tolerance_is_kept(data):
    """Of all that it may choose: pairs of unit charges of a lattice of 64 to 512 atoms, and any width."""
    n, sigma = data.draw(st.integers(4, 8)), data.draw(st.floats(0.15, 1.2))
    tolerance = 10 ** -data.draw(st.floats(2, 7))
    positions, cell, _ = lattice(n)
    pbc = data.draw(st.sampled_from([CRYSTAL, SLAB]))
    charges = torch.zeros(n**3, 3, 1, dtype=F64)
    charges[data.draw(st.integers(0, n**3 - 1)), 0] = 1.0
    charges[:2, 1] = torch.tensor([[1.0], [-1.0]], dtype=F64)
    charges[n, 2] = 1.0
    found = []
    for limit in (tolerance, 1e-3 * tolerance):
        geometry = Coulomb(l_max=0, sigma=sigma, tolerance=limit).prepare(positions, cell, pbc)
        found.append(geometry.potential(charges, self_interaction=True))
    # of a pair; two charges make twice as much
    assert float((found[0] - found[1]).abs().max()) < 2 * tolerance
