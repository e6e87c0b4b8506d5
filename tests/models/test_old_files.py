"""Models that earlier versions saved: the same energies and forces, or a word on why not."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("mace", reason="needs mace-torch")

from ase.build import molecule

import scfmlip
from scfmlip.models.upgrades import FORMAT

OLD = Path(__file__).parent / "data" / "old"
# eV of a water molecule, and eV/angstrom along y on its first hydrogen, where the file was written
WATER = {
    "0.1.0-short_range": (-4.397804991924688, -0.2058847199890783),
    "0.1.0-fixed": (-4.350361157868493, -0.1339441056795253),
    "0.1.0-local": (-4.396280701930207, -0.20147137528203085),
    "0.1.0-local_split": (-4.3544507480727965, -0.148087374460248),
    "0.1.0-latent": (-4.397017910122616, -0.2036570420305053),
    "0.1.0-latent_les": (-4.206826018055784, -0.12514909298353055),
    "0.1.0-equilibrated": (-4.398204191304759, -0.2071203973265367),
    "0.1.0-fixed_point": (-4.398404253646302, -0.2075021069415019),
    "0.1.0-functional": (-2.5998110394216942, -0.20851100272091627),
    "older-fixed": (-4.350361157868493, -0.1339441056795253),
}


@pytest.mark.parametrize("name", WATER)
def test_the_same_numbers(name):
    atoms = molecule("H2O")
    atoms.info.update(charge=0.0, spin=1.0)
    atoms.calc = scfmlip.ase.Calculator(scfmlip.load(OLD / f"{name}.safetensors"))
    energy, force = WATER[name]
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
    assert atoms.get_forces()[1, 2] == pytest.approx(force, abs=1e-10)


def test_equations_that_have_changed():
    with pytest.raises(ValueError, match=r"older-fixed_point.*polarity is missing.*train it again"):
        scfmlip.load(OLD / "older-fixed_point.safetensors")


def test_every_file_is_tried():
    assert {p.stem for p in OLD.iterdir()} == {*WATER, "older-fixed_point"}


@pytest.mark.parametrize(
    ("stated", "message"),
    [("scfmlip-model-99", "later scfmlip"), ("else", "not written by scfmlip"), (None, "not written by")],
)
def test_formats(tmp_path, stated, message):
    file = OLD / "0.1.0-local.safetensors"
    with safe_open(file, "pt") as content:
        header = content.metadata()
    assert header["format"] == FORMAT
    del header["format"]
    save_file(
        load_file(file), tmp_path / "m.safetensors", header | ({} if stated is None else {"format": stated})
    )
    with pytest.raises(ValueError, match=message):
        scfmlip.load(tmp_path / "m.safetensors")
