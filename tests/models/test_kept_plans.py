"""
Models keep plans between calls: every call's numbers are those of a model that has seen nothing before.

A plan that were kept too long would be a wrong number without a word, so everything that a plan depends on is
changed here, one after another, on one model.
"""

import copy
import dataclasses
import gc

import numpy as np
import pytest
import torch
from ase import Atoms

from models.cases import batch, crystal, make_model, slab, water
from scfmlip import Coulomb
from scfmlip.electrostatics import kept
from scfmlip.segments import Segments


@pytest.fixture
def made(monkeypatch):
    """The operators whose plans are made."""
    operators, plan = [], Coulomb.plan

    def count(self, *args, **kwargs):
        operators.append(self)
        return plan(self, *args, **kwargs)

    monkeypatch.setattr(Coulomb, "plan", count)
    return operators


def check(model, given, stress=False):
    """The outputs, which have to be those of a copy that keeps nothing, to the last bit."""
    fresh = copy.deepcopy(model)
    got, want = (m(dict(given), compute_stress=stress) for m in (model, fresh))
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.nan_to_num(got[name]), torch.nan_to_num(value)), name
    return got


def moved(given, by):
    """A copy of a batch with atoms moved, ``[n_atoms, 3]`` or less."""
    return {**given, "positions": given["positions"] + torch.as_tensor(by, dtype=given["positions"].dtype)}


def thicker(given, by):
    """The topmost atom further up, angstrom; edges are left as they are."""
    shift = torch.zeros_like(given["positions"])
    shift[int(given["positions"][:, 2].argmax()), 2] = by
    return moved(given, shift)


def counted(made, function):
    before = len(made)
    function()
    return len(made) - before


def test_moved_atoms_keep_it(made):
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal(), slab(), water()])
    assert counted(made, lambda: model(dict(given))) == 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        shift = 0.02 * torch.randn(given["positions"].shape, generator=generator)
        assert counted(made, lambda shift=shift: model(moved(given, shift))) == 0
        check(model, moved(given, shift), stress=True)


@pytest.mark.parametrize("case", ["local", "qeq", "affine", "passive", "convex", "fixed", "latent", "split"])
def test_a_slab_that_grows_and_shrinks(case):
    model = copy.deepcopy(make_model(case))
    given = batch(model, [slab()])
    heights = []
    for by in (0.0, 0.1, 0.9, 1.7, 0.9, 0.0, 0.4):
        check(model, thicker(given, by))
        (_, plans, _) = kept.kept_plans(model.rule)._last
        heights.append([float(plan.lattice.slabs.thickness) for _, plan in plans])
    assert len({tuple(h) for h in heights}) > 1
    assert heights[0] == heights[5]


def test_cells_and_periodicity(made):
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal(), slab()])
    model(dict(given))
    n_atoms = len(given["batch"])
    cell = given["cell"].clone()
    changes = {
        "cell": cell + 1e-13 * cell.abs().max(),
        "pbc": torch.tensor([[True] * 3, [False] * 3]),
        "ptr": torch.tensor([0, 1, n_atoms]),
        "batch": torch.tensor([0] + [1] * (n_atoms - 1)),
    }
    for names in (("cell",), ("pbc",), ("ptr", "batch")):
        other = {**given, **{name: changes[name] for name in names}}
        assert counted(made, lambda other=other: model(dict(other))) == 1, names
        check(model, other)
        check(model, given)


def test_the_same_tensors_with_other_values():
    """By any way of writing: in place, through ``.data`` or NumPy, which no version of a tensor tells."""
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal(), slab()])
    check(model, given)
    given["cell"] *= 1.01
    check(model, given)
    given["cell"].data.mul_(1.01)
    check(model, given)
    given["cell"].numpy()[0] *= 1.01
    check(model, given)
    given["pbc"].numpy()[1] = False
    check(model, given)
    # a plan must not look at the caller's memory, which is written to and comes back in other tensors
    first = batch(model, [slab(), crystal()])
    second = {name: value.clone() for name, value in first.items()}
    check(model, first)
    for name in ("batch", "ptr"):
        first[name].zero_()
    check(model, second)


def test_other_atoms_in_the_same_cells():
    """Other elements, another order, another number of systems with as many atoms."""
    model = copy.deepcopy(make_model("qeq"))
    a, b = crystal(), slab()
    check(model, batch(model, [a, b]))
    check(model, batch(model, [b, a]))
    other = a.copy()
    other.numbers = other.numbers[::-1]
    check(model, batch(model, [other, b]))
    swapped = b[np.random.default_rng(0).permutation(len(b))]
    check(model, batch(model, [a, swapped]))
    dimer = Atoms("Al2", [[0, 0, 0], [2.1, 2.0, 0.1]], cell=a.cell, pbc=True, info={"charge": 0.0})
    check(model, batch(model, [dimer, b]))
    check(model, batch(model, [a, b, a]))
    check(model, batch(model, [a]))
    check(model, batch(model, [a, b]))


def test_dtypes_and_devices():
    model = copy.deepcopy(make_model("local"))
    frames = [crystal(), slab()]
    check(model, batch(model, frames))
    single = model.float()
    check(single, batch(single, frames))
    with torch.inference_mode():
        single(batch(single, frames))
    given = batch(single, frames)
    out = single(dict(given), training=True)
    loss = out["forces"].square().sum()
    loss.backward()
    check(single, batch(single, frames))


def test_other_options(made):
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal()])
    before = model(dict(given))["energy"]
    model.rule.coulomb = Coulomb(sigma=1.2, tolerance=1e-3)
    assert counted(made, lambda: model(dict(given))) == 1
    assert model(dict(given))["energy"] != before
    check(model, given)


def test_training_on_batches_of_differing_sizes(made):
    model = copy.deepcopy(make_model("local"))
    frames = [[crystal()], [crystal(), slab()], [water(), water()], [slab(), crystal()], [crystal()]]
    fresh = copy.deepcopy(model)
    for members in frames * 2:
        given = batch(model, members)
        gradients = []
        for m in (model, fresh):
            kept._KEPT.pop(fresh.rule, None)
            m.zero_grad()
            out = m(dict(given), training=True)
            (out["energy"].square().sum() + out["forces"].square().sum()).backward()
            gradients.append([p.grad for p in m.parameters() if p.grad is not None])
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)


def test_narrow_gaussians_find_their_neighbours_anew():
    """A split operator's plan stays, its neighbours do not."""
    model = copy.deepcopy(make_model("local"))
    model.rule.coulomb = Coulomb(sigma=0.6, smooth=1.6, tolerance=1e-6)
    given = batch(model, [crystal(), slab()])
    model(dict(given))
    (_, ((_, plan),), _) = kept.kept_plans(model.rule)._last
    assert plan.near is not None
    assert plan.near.found is None
    for by in (0.05, 0.4, -0.3):
        check(model, thicker(given, by), stress=True)
        shift = by * torch.tensor([[1.0, 0.3, -0.2]]) * torch.arange(len(given["positions"]))[:, None]
        check(model, moved(given, shift))


def test_the_method_that_would_be_chosen():
    """Cells decide whether Gaussians are split, and a plan never outlives them."""
    coulomb, memory = Coulomb(sigma=0.5, tolerance=1e-5), kept.KeptPlans()
    one, pbc = Segments.of(torch.zeros(50, dtype=torch.int64), 1), torch.ones(1, 3, dtype=torch.bool)
    ways = []
    for edge in (5.0, 30.0, 30.0, 8.0, 20.0):
        cell = edge * torch.eye(3, dtype=torch.float64)[None]
        positions = edge * torch.rand(50, 3, dtype=torch.float64)
        plan = memory.look(positions, cell, pbc, one)[0].plan(coulomb)
        want = coulomb.plan(cell, pbc, one, 50, positions=positions)
        ways.append((plan.method[0], plan.smooth_width))
        assert ways[-1] == (want.method[0], want.smooth_width)
        assert plan.resolution == want.resolution
        if want.near is not None:
            assert torch.equal(plan.near.found.positions, positions)
    assert len(set(ways)) > 1


def test_a_rule_that_changes_its_system():
    """Other cells, periodicity or systems than those that were compared: a plan of their own."""
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal(), slab()])
    systems = []

    class Spy(torch.nn.Module):
        def __init__(self, rule):
            super().__init__()
            self.rule, self.has_geometry = rule, True
            self.feels_external_charges = self.supports_direct = True

        def forward(self, system):
            systems.append(system)
            return self.rule(system)

    model.rule = Spy(model.rule)
    model(dict(given))
    (system,) = systems
    coulomb = model.rule.rule.coulomb
    assert system.prepare(coulomb).plan is system.prepare(coulomb).plan
    open_ = torch.zeros_like(system.pbc)
    for change in ({"pbc": open_}, {"cell": 1.5 * system.cell}, {"positions": 3.0 * system.positions}):
        other = dataclasses.replace(system, **change)
        plan, want = other.prepare(coulomb).plan, dataclasses.replace(other, plans=None).prepare(coulomb).plan
        assert plan is not system.prepare(coulomb).plan
        assert plan.boundaries == want.boundaries
        if plan.lattice is not None:
            assert plan.lattice.grid.n_points == want.lattice.grid.n_points


def test_errors_are_those_of_a_first_call():
    model = copy.deepcopy(make_model("local"))
    given = batch(model, [crystal(), slab()])
    model(dict(given))
    bad = {**given, "cell": given["cell"].clone()}
    bad["cell"][0] = 0.0
    with pytest.raises(ValueError, match="periodic along a cell vector of length 0"):
        model(bad)
    flat = {**given, "cell": given["cell"].clone()}
    flat["cell"][0] = flat["cell"][1]
    with pytest.raises(ValueError, match="no volume"):
        model(flat)
    for value in (torch.nan, torch.inf):
        broken = moved(given, 0.0)
        broken["positions"][1, 2] = value
        with pytest.raises(ValueError, match="positions holds NaN or infinity in 1 row"):
            model(broken)
    check(model, given)


def test_models_are_forgotten_with_their_plans():
    gc.collect()
    before = len(kept._KEPT)
    model = copy.deepcopy(make_model("local"))
    model(batch(model, [crystal()]))
    assert len(kept._KEPT) == before + 1
    del model
    gc.collect()
    assert len(kept._KEPT) == before
