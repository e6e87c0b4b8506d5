"""Narrow Gaussians through a smooth operator and neighbours equal those summed over all wave vectors."""

import pytest
import torch

from scfmlip.models.rules.equilibrated.range_split import RangeSplit

from .cases import SYSTEMS, batch, crystal, make_model, slab, water

NAMES = ("energy", "electrostatic_energy", "forces", "stress", "charges", "fermi_level")


@pytest.mark.parametrize("case", ["qeq_narrow", "qeq_screened"])
@pytest.mark.parametrize("where", ["slab", "periodic", "mixed"])
def test_equals_the_direct_sum(case, where, monkeypatch):
    model = make_model(case)
    kinds = {
        "slab": [slab(-1.0)],
        "periodic": [crystal(-1.0)],
        "mixed": [slab(), water(1.0), crystal()],
    }
    frames = kinds[where]
    given = batch(model, frames)
    splits = []
    split = RangeSplit.split

    def counted(self, system):
        splits.append(split(self, system))
        return splits[-1]

    monkeypatch.setattr(RangeSplit, "split", counted)
    through = model(given, compute_stress=True, compute_potential=True)
    # 1.2 angstrom is no narrow width in cells this small
    assert (splits[0] is not None) == (case == "qeq_narrow")
    monkeypatch.setattr(RangeSplit, "split", lambda *_: None)
    direct = model(given, compute_stress=True, compute_potential=True)
    for name in (*NAMES, "electrostatic_potential"):
        torch.testing.assert_close(through[name], direct[name], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("where", ["open", "counter_charge"])
def test_left_to_the_operator(where):
    """Clusters, and slabs with a counter-charge."""
    model = make_model("qeq_narrow")
    out = model(batch(model, [SYSTEMS[where]()]))
    assert torch.isfinite(out["forces"]).all()


def test_operators_are_kept():
    """A cell that breathes keeps its smooth operator, and with it the wave vectors' layout."""
    model = make_model("qeq_narrow")
    before = len(model.rule.narrow._operators)
    for scale in (1.0, 1.0005, 0.9995):
        atoms = slab()
        atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        model(batch(model, [atoms]))
    assert len(model.rule.narrow._operators) <= before + 2
