"""What options and data say together, before a training starts."""

import numpy as np
import pytest
from ase.io import write

from scfmlip.training import config_from_dict
from scfmlip.training.processes import Processes, pick_device
from scfmlip.training.setup import prepare

from .problems import options, water_frames


def check(values):
    prepare(config_from_dict(values), Processes(0, 1, pick_device("cpu")))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config_weight", -1.0),
        ("config_weight", np.nan),
        ("config_weight", "heavy"),
        ("config_energy_weight", -0.5),
        ("config_forces_weight", np.inf),
        ("config_dipole_weight", np.array([1.0, -1.0, 1.0])),
        ("config_weight", np.array([1.0, 2.0])),
        ("config_weight", True),
        ("config_energy_weight", np.array([1.0, 2.0])),
    ],
)
@pytest.mark.parametrize("which", ["train", "valid"])
def test_weights_that_cannot_be(key, value, which, tmp_path):
    frames = water_frames()
    frames[3].info[key] = value
    write(tmp_path / "bad.xyz", frames)
    values = options(tmp_path)
    values["data"] = {"train": str(tmp_path / "frames.xyz"), "valid": str(tmp_path / "frames.xyz")}
    values["data"][which] = str(tmp_path / "bad.xyz")
    with pytest.raises(ValueError, match=rf"frame 3 of .*bad\.xyz: '{key}' must be a number >= 0"):
        check(values)


@pytest.mark.parametrize("which", ["train", "valid"])
def test_frames_that_do_not_count(which, tmp_path):
    frames = water_frames()
    for atoms in frames:
        atoms.info["config_weight"] = 0.0
    write(tmp_path / "bad.xyz", frames)
    values = options(tmp_path)
    values["data"] = {"train": str(tmp_path / "frames.xyz"), "valid": str(tmp_path / "frames.xyz")}
    values["data"][which] = str(tmp_path / "bad.xyz")
    with pytest.raises(ValueError, match=rf"config_weight of every frame of data\.{which} is 0"):
        check(values)


def test_validation_frames_without_labels(tmp_path, caplog):
    """Their loss would be 0 in every epoch, and the first one the best for ever."""
    frames = water_frames()
    for atoms in frames:
        atoms.info["energy_of_dft"] = atoms.info.pop("REF_energy")
        del atoms.arrays["REF_forces"]
    write(tmp_path / "valid.xyz", frames)
    values = options(tmp_path)
    values["data"]["valid"] = str(tmp_path / "valid.xyz")
    check(values)  # charges are left
    assert "no validation frame holds labels of energy, forces (stages[0].loss)" in caplog.text
    values["stages"] = [{"epochs": 1, "loss": {"energy": 1, "forces": 10}}]
    message = r"no validation frame holds 'REF_energy', 'REF_forces', which .*stages\[0\].*energy_of_dft"
    with pytest.raises(ValueError, match=message):
        check(values)


@pytest.mark.parametrize(
    ("rule", "term", "output"),
    [
        ("short_range", "charges", "charges"),
        ("short_range", "dipole", "dipole"),
        ("local", "fermi_level", "fermi_level"),
        ("local", "scf_stability", "scf_amplification"),
    ],
)
def test_what_the_model_does_not_predict(rule, term, output, tmp_path):
    frames = water_frames()
    for atoms in frames:
        atoms.info["REF_fermi_level"] = -4.0
    values = options(tmp_path, frames=frames)
    values["model"]["rule"] = rule
    values["stages"] = [{"epochs": 1}, {"epochs": 1, "loss": {"energy": 1, term: 2}}]
    with pytest.raises(
        ValueError, match=rf"stages\[1\]\.loss\.{term} is 2, but this model predicts no {output}"
    ):
        check(values)


def test_the_check_draws_no_random_numbers(tmp_path):
    """A training with it is the training without it."""
    import torch

    values = options(tmp_path)
    values["model"] |= {"rule": {"name": "fixed_point"}, "constraint": "charge"}
    values["stages"] = [{"epochs": 1, "loss": {"energy": 1, "scf_stability": 1}}]
    torch.manual_seed(3)
    check(values)
    found = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(3))


def spoilt(which, tmp_path, spoil):
    """Options whose training or validation file has one frame that is spoilt."""
    values = options(tmp_path)
    frames = water_frames()
    spoil(frames[3])
    write(tmp_path / "bad.xyz", frames)
    values["data"] = {"train": str(tmp_path / "frames.xyz"), "valid": str(tmp_path / "frames.xyz")}
    values["data"][which] = str(tmp_path / "bad.xyz")
    return values


def overlap(atoms):
    atoms.positions[1] = atoms.positions[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda a: a.info.update(REF_energy=True),
            "'REF_energy' .data.energy_key. must be numbers, got True",
        ),
        (lambda a: a.info.update(REF_energy="x"), "'REF_energy' .data.energy_key. must be numbers, got 'x'"),
        (lambda a: a.info.update(REF_energy=np.nan), "'REF_energy' .data.energy_key. is not finite"),
        (lambda a: a.info.update(external_field="x"), "'external_field'. must be 3 numbers"),
        (lambda a: a.info.update(net_charge=2.0), "are both the total charge"),
        (overlap, "atoms 0 and 1 are at the same position"),
    ],
)
@pytest.mark.parametrize("which", ["train", "valid"])
def test_spoilt_frames_are_named_before_the_training(which, spoil, message, tmp_path):
    with pytest.raises(ValueError, match=rf"frame 3 of .*bad\.xyz: .*{message}"):
        check(spoilt(which, tmp_path, spoil))


def test_frames_with_what_is_no_element(tmp_path):
    def spoil(atoms):
        atoms.numbers[0] = 0

    with pytest.raises(ValueError, match=r"frame 3 of .*bad\.xyz: 0 is not an element"):
        check(spoilt("train", tmp_path, spoil))


@pytest.mark.parametrize("element", [None, "x", [1.0]])
def test_elements_that_are_none(element, tmp_path):
    values = options(tmp_path)
    values["model"]["elements"] = ["H", "O", element]
    with pytest.raises(ValueError, match=r"model\.elements: .* is not an element"):
        check(values)


@pytest.mark.parametrize("weight", [None, {"x": 1}, [1.0]])
def test_weights_of_the_loss_are_numbers(weight, tmp_path):
    values = options(tmp_path)
    values["stages"][0]["loss"] = {"energy": 1.0, "forces": weight}
    with pytest.raises(ValueError, match=r"stages\[0\].*loss\.forces must be a number of at least 0"):
        check(values)
