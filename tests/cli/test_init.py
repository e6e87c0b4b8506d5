"""``scfmlip init``: the keys it finds, the rule it proposes, and that what it writes trains."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from scfmlip.cli import main
from scfmlip.data import path
from scfmlip.models import rule_names
from scfmlip.training import load_config

_spec = importlib.util.spec_from_file_location(
    "init_problems", Path(__file__).parents[1] / "training" / "problems.py"
)
assert _spec is not None
assert _spec.loader is not None
problems = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(problems)


def water(count=4):
    """Frames with labels, without a total charge."""
    frames = problems.water_frames(count)
    for atoms in frames:
        del atoms.info["total_charge"]
    return frames


def renamed(frames, names):
    for atoms in frames:
        for old, new in names.items():
            for store in (atoms.info, atoms.arrays):
                if old in store:
                    store[new] = store.pop(old)
    return frames


def init(folder, frames, *options):
    file = folder / "data.xyz"
    write(file, frames, format="extxyz")
    out = folder / "train.yaml"
    assert main(["init", str(file), "-o", str(out), "--overwrite", *options]) == 0
    return out.read_text(), load_config(out)


def test_shipped_frames(tmp_path, capsys):
    out = tmp_path / "train.yaml"
    assert main(["init", str(path("al_water.xyz")), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 frames of 36 to 36 atoms: 2 slabs" in printed or "2 frames of" in printed
    config = load_config(out)
    assert config.data.charges_key == "REF_hirshfeld"
    assert config.data.fermi_key == "REF_fermi_eV"
    assert config.model["rule"]["name"] == "equilibrated"
    # Al of the metal starts soft, what holds charge stiff
    assert config.model["rule"]["hardness"] == {"Al": 10, "H": 200, "O": 200}
    assert "slabs" in out.read_text()
    # a stress of slabs is none, and the frames have none
    assert all("stress" not in stage.loss for stage in config.stages)


def test_charge_states_and_stress(tmp_path):
    out = tmp_path / "train.yaml"
    assert main(["init", str(path("sio2_vacancy.xyz")), "-o", str(out), "--quiet"]) == 0
    config = load_config(out)
    assert config.model["rule"]["name"] == "equilibrated"
    assert config.model["constraint"] == "charge"
    assert config.stages[-1].loss["stress"] > 0
    assert "total charges (e) of frames: 0 (1), 1 (1), 2 (1)" in out.read_text()


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ({}, {"energy_key": "REF_energy", "charges_key": "REF_charges", "dipole_key": "REF_dipole"}),
        (
            {"REF_energy": "dft_energy", "REF_forces": "dft_forces", "REF_charges": "mulliken"},
            {"energy_key": "dft_energy", "forces_key": "dft_forces", "charges_key": "mulliken"},
        ),
        ({"REF_charges": "bader_charges"}, {"charges_key": "bader_charges"}),
    ],
)
def test_keys_of_many_names(tmp_path, names, keys):
    _, config = init(tmp_path, renamed(water(), names))
    assert {name: getattr(config.data, name) for name in keys} == keys
    assert config.model["rule"] == "local"


def test_results_of_ase(tmp_path):
    frames = []
    for atoms in water():
        atoms.calc = SinglePointCalculator(
            atoms, energy=atoms.info.pop("REF_energy"), forces=atoms.arrays.pop("REF_forces")
        )
        frames.append(atoms)
    _, config = init(tmp_path, frames)
    assert (config.data.energy_key, config.data.forces_key) == ("energy", "forces")


def test_nothing_to_learn_charges_from(tmp_path):
    frames = water()
    for atoms in frames:
        del atoms.arrays["REF_charges"], atoms.info["REF_dipole"]
    text, config = init(tmp_path, frames)
    assert config.model["rule"] == "latent"
    assert "there are no charges to learn from" in text


def test_what_is_not_read_is_said(tmp_path):
    frames = water()
    for atoms in frames:
        atoms.info["ion_charge"] = 0
    lone = Atoms("O", positions=[[0, 0, 0]], info={"REF_energy": -430.0})
    text, _ = init(tmp_path, [*frames, lone])
    assert "total_charge_key: ion_charge" in text
    assert "single atoms of O" in text


def test_isolated_atoms(tmp_path):
    singles = [
        Atoms(symbol, positions=[[0, 0, 0]], info={"REF_energy": e, "config_type": "IsolatedAtom"})
        for symbol, e in (("H", -13.0), ("O", -430.0))
    ]
    _, config = init(tmp_path, [*water(), *singles])
    assert config.model["atomic_energies"] == "isolated"


@pytest.mark.parametrize("rule", rule_names())
def test_every_rule_can_be_asked_for(tmp_path, rule):
    _, config = init(tmp_path, water(), "--rule", rule, "--epochs", "3")
    written = config.model["rule"]
    assert (written if isinstance(written, str) else written["name"]) == rule
    assert sum(stage.epochs for stage in config.stages) == 3


def test_what_it_writes_passes_the_check(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = problems.water_frames(6)
    text, _ = init(tmp_path, frames, "--rule", "equilibrated")
    small = text.replace("64x0e+64x1o", "4x0e+4x1o").replace("max_ell: 3", "max_ell: 1")
    small = small.replace("correlation: 3", "correlation: 1")
    Path("train.yaml").write_text(small)
    capsys.readouterr()
    assert main(["train", "train.yaml", "--check"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["energy", "REF_energy"] in [line[:2] for line in lines]
    (row,) = [line for line in lines if line[:2] == ["charges", "REF_charges"]]
    assert row[2:5] == ["5", "+", "1"]
    values = np.concatenate([atoms.arrays["REF_charges"] for atoms in frames])
    assert float(row[5]) >= values.min() - 1e-6
    assert "charge rule: equilibrated, constraint charge" in printed
    assert printed.endswith("train.yaml is fine\n")
    assert not Path("training").exists()


def test_mistakes(tmp_path, capsys):
    out = tmp_path / "train.yaml"
    out.write_text("mine")
    assert main(["init", str(path("al_water.xyz")), "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    bare = tmp_path / "bare.xyz"
    write(bare, Atoms("H2", positions=[[0, 0, 0], [0.7, 0, 0]]), format="extxyz")
    for arguments, message in (
        ([str(bare)], "no frame holds an energy or forces"),
        ([str(tmp_path / "none.xyz")], "there is no file"),
        ([str(path("al_water.xyz")), "--rule", "magic"], "no charge rule 'magic'"),
        ([str(path("al_water.xyz")), "--epochs", "0"], "--epochs must be at least 1"),
    ):
        assert main(["init", *arguments, "-o", str(tmp_path / "new.yaml")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new.yaml").exists()


def test_yaml_reads_keys_as_they_are(tmp_path):
    frames = renamed(water(), {"REF_energy": "1_energy", "REF_charges": "my charges"})
    write(tmp_path / "x.xyz", frames, format="extxyz")
    text, config = init(tmp_path, frames)
    assert config.data.energy_key == "1_energy"
    assert yaml.safe_load(text)["data"]["energy_key"] == "1_energy"
