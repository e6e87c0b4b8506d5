"""``scfmlip evaluate`` beside the labels of its input: tables, pictures, keys."""

import numpy as np
import pytest

pytest.importorskip("mace", reason="needs mace-torch")

from ase.io import read

from scfmlip.cli import main
from scfmlip.data import path


def test_errors_against_labels(tmp_path, capsys):
    """The table's numbers are those of the written file, and a picture appears."""
    source, out, picture = path("al_water.xyz"), tmp_path / "out.xyz", tmp_path / "parity.png"
    model = path("models/al_water-equilibrated.safetensors")
    arguments = ["evaluate", str(source), "--model", str(model), "-o", str(out), "--parity", str(picture)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    rows = {tuple(line.split()[:2]): line.split() for line in printed.splitlines()}
    done = read(out, ":")
    error = [1e3 * (a.info["scfmlip_energy"] - a.info["REF_energy"]) / len(a) for a in done]
    assert float(rows["energy", "REF_energy"][3]) == pytest.approx(
        np.sqrt(np.mean(np.square(error))), rel=1e-3
    )
    error = np.concatenate([a.arrays["scfmlip_charges"] - a.arrays["REF_hirshfeld"] for a in done])
    assert float(rows["charges", "REF_hirshfeld"][5]) == pytest.approx(1e3 * np.abs(error).max(), rel=1e-3)
    # of a slab's dipole only the component along the open direction is a label
    error = [1e3 * abs(a.info["scfmlip_dipole"][2] - a.info["REF_dipole"][2]) for a in done]
    assert float(rows["dipole", "REF_dipole"][4]) == pytest.approx(np.mean(error), rel=1e-3)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    # under another key
    assert main([*arguments, "--overwrite", "--keys", "charges_key=REF_mulliken", "--quiet"]) == 0
    assert "REF" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keys", "charges=REF_mulliken"], "--keys takes OPTION=KEY"),
        (["--keys", "charges_key=bader"], "no frame has 'bader'"),
        (["--keys", "colour_key=REF_energy"], "has no option 'colour_key'"),
    ],
)
def test_wrong_keys_of_labels(tmp_path, capsys, options, message):
    model = path("models/al_water-equilibrated.safetensors")
    arguments = ["evaluate", str(path("al_water.xyz")), "--model", str(model), "-o", str(tmp_path / "o.xyz")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.xyz").exists()
