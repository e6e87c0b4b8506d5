"""What is said about everything that the training frames hold."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from scfmlip.training import config_from_dict, prepare
from scfmlip.training.labels import check_labels
from scfmlip.training.processes import Processes

from .problems import options, water_frames

ALONE = Processes(0, 1, torch.device("cpu"))


def slabs():
    """Water in cells, every other one periodic in two directions only; each with a stress."""
    frames = water_frames(4)
    for i, atoms in enumerate(frames):
        atoms.set_cell([6, 6, 12])
        atoms.pbc = (True, True, i % 2 == 0)
        atoms.info["REF_stress"] = np.eye(3) * 0.01
    return frames


def said(folder, frames, caplog, **changes):
    caplog.set_level("INFO", "scfmlip.training")
    values = options(folder, frames=frames, data={"train": str(folder / "frames.xyz"), "valid_fraction": 0.0})
    prepare(config_from_dict(values | changes), ALONE)
    return caplog.text


def test_every_label_has_its_word(tmp_path, caplog):
    frames = slabs()
    frames[0].info |= {"comment": "x", "REF_virials": np.eye(3)}
    frames[1].info |= {"external_field": 0.1, "multiplicity": 1}
    frames[0].arrays["tags2"] = np.zeros(len(frames[0]))
    frames[0].calc = SinglePointCalculator(frames[0], magmom=1.0)
    text = said(tmp_path, frames, caplog)
    assert "labels of 4 training frames: energy 4 (loss), forces 4 (loss), charges 4 (loss)" in text
    unused = (
        "stress of 2 frames that are not periodic in three directions, stress 2 (in no term of the loss), "
    )
    assert f"labels that are not trained on: {unused}dipole 4 (in no term of the loss)" in text
    assert "external_field 1 (input)" in text
    assert "total_spin 1 (no input of this model)" in text
    unread = next(line for line in text.splitlines() if "not read: " in line)
    assert all(
        name in unread for name in ("info comment", "info REF_virials", "arrays tags2", "results magmom")
    )


def test_a_loss_on_labels_that_do_not_count(tmp_path, caplog):
    frames = slabs()
    for atoms in frames:
        atoms.pbc = (True, True, False)
    stages = [{"epochs": 1, "loss": {"energy": 1, "stress": 1}}]
    with pytest.raises(
        ValueError, match=r"no training frame holds 'REF_stress' \(data.stress_key\) that counts \(of 4"
    ):
        said(tmp_path, frames, caplog, stages=stages)


def test_counts_are_of_what_counts(tmp_path):
    values = options(tmp_path, frames=slabs())
    from scfmlip.training.data import read_sets

    config = config_from_dict(values)
    found = check_labels({"train": read_sets(config.data)["train"]}, config)
    assert found["stress"] in (1, 2)
    assert found["energy"] == len(read_sets(config.data)["train"])


@pytest.mark.parametrize("weight", [-1.0, np.nan, "much", [1.0, -1.0, 1.0]])
@pytest.mark.parametrize("key", ["config_weight", "config_energy_weight"])
def test_weights_of_frames(tmp_path, key, weight, caplog):
    frames = water_frames(3)
    frames[1].info[key] = weight
    with pytest.raises(ValueError, match=rf"frame 1 of .*'{key}' must be a number >= 0"):
        said(tmp_path, frames, caplog)


def test_a_level_is_needed_or_a_label(tmp_path, caplog):
    frames = water_frames(3)
    model = options(tmp_path)["model"] | {"rule": "equilibrated", "constraint": "fermi_level"}
    loss = [{"epochs": 1, "loss": {"energy": 1}}]
    for atoms in frames:
        atoms.info["REF_fermi_level"] = -4.0
    (tmp_path / "frames.xyz").unlink()
    assert "fermi_level 3 (input)" in said(tmp_path, frames, caplog, model=model, stages=loss)
    del frames[1].info["REF_fermi_level"]
    (tmp_path / "frames.xyz").unlink()
    with pytest.raises(ValueError, match=r"frame 1 of .* lacks atoms.info\['REF_fermi_level'\]"):
        said(tmp_path, frames, caplog, model=model, stages=loss)


def test_elements_of_isolated_atoms_are_not_drawn(tmp_path):
    """A file of one molecule and its atoms leaves the molecule to train with."""
    atoms = [Atoms(s, info={"config_type": "IsolatedAtom", "REF_energy": -1.0}) for s in "HO"]
    values = options(
        tmp_path, frames=[*water_frames(1), *atoms], data={"train": str(tmp_path / "frames.xyz")}
    )
    with pytest.raises(ValueError, match=r"1 frames are too few .* \(besides 2 of isolated atoms\)"):
        prepare(config_from_dict(values), ALONE)
