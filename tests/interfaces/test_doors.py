"""One name in a frame means the same at every door: ASE, evaluate, dynamics, LAMMPS, training, init."""

import re
from pathlib import Path

import pytest
from ase.io import read, write

pytest.importorskip("mace", reason="needs mace-torch")

import scfmlip
from scfmlip.cli import main
from scfmlip.data import path
from scfmlip.interfaces.lammps.attach import _inputs
from scfmlip.mace_torch.inputs import INPUTS, input_of
from scfmlip.md import Run, config_from_dict
from scfmlip.training import DataConfig
from scfmlip.training.frames import PROPERTIES, find

MODEL = str(path("models/al_water-equilibrated.safetensors"))
NAMES = INPUTS["total_charge"].names
ROOT = Path(__file__).parents[2]


def frame(name):
    """A charged interface whose charge has that name, and no other."""
    atoms = read(path("al_water.xyz"), 0)
    atoms.info, atoms.calc = {name: 1.0}, None
    atoms.info["counter_charge"] = [17.0, 19.0]
    return atoms


@pytest.fixture(scope="module")
def model():
    return scfmlip.load(MODEL)


@pytest.mark.parametrize("name", [*NAMES, "Net_Charge", "REF_tot_charge"])
def test_charge_of_every_name(name, model, tmp_path, capsys):
    atoms, file = frame(name), tmp_path / "frame.xyz"
    write(file, atoms)
    atoms.calc = scfmlip.ase.Calculator(model)
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-4)
    assert find(read(file), DataConfig(train=(str(file),)), "total_charge") == 1.0
    assert _inputs(model, {name.removeprefix("REF_"): 1.0}, None)["total_charge"] == 1.0
    options = {"structure": str(file), "model": MODEL, "steps": 0, "velocities": "zero"}
    run = Run(config_from_dict({**options, "output": str(tmp_path / "md"), "device": "cpu"}))
    assert run.moment().row["charge"] == pytest.approx(1.0, abs=1e-6)
    if name in ("Net_Charge", "REF_tot_charge"):  # the slower doors
        out = tmp_path / "out.xyz"
        assert main(["evaluate", str(file), "--model", MODEL, "-o", str(out), "--quiet"]) == 0
        assert read(out).arrays["scfmlip_charges"].sum() == pytest.approx(1.0, abs=1e-4)
        capsys.readouterr()
        assert main(["init", str(file), "-o", str(tmp_path / "train.yaml")]) == 0
        assert re.search(r"total charge +of atoms.info +1 +1\b", capsys.readouterr().out)


def test_tables_of_the_pages_are_the_table_of_the_code():
    """Names in backticks beside ``atoms.info`` on the pages are ones that are read."""
    configuration = pytest.importorskip("docsite.configuration")
    table = configuration.input_table()
    for given in INPUTS.values():
        assert all(f"`{name}`" in table for name in given.names)
    # a training's keys of inputs have the same first names
    for which, given in INPUTS.items():
        option = PROPERTIES[which][0]
        assert getattr(DataConfig(train=("a.xyz",)), option).removeprefix("REF_") in given.names
    for page in (ROOT / "docs").rglob("*.md"):
        for key in re.findall(r"""(?:atoms\.)?info\[["'](\w+)["']\]""", page.read_text()):
            assert input_of(key) or key in ("counter_charge", "external_charges"), f"{page.name}: {key}"
