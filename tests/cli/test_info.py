"""``scfmlip info``, ``--version``, ``completion``: what a user types and sees."""

import json
import shutil
import subprocess

import pytest
import torch
from mace_torch.mace_models import mace_model

import scfmlip
from scfmlip.cli import main
from scfmlip.data import path

MODEL = "models/al_water-equilibrated.safetensors"


def test_card_of_a_shipped_model(capsys):
    """Its file is of an earlier version: the card is made of its configuration."""
    assert main(["info", str(path(MODEL))]) == 0
    printed = capsys.readouterr().out
    assert "equilibrated, constraint charge" in printed
    assert "H, O, Al" in printed
    assert "4.5 angstrom" in printed
    assert "atoms.info['charge']" in printed
    assert "energy eV" in printed
    assert "earlier scfmlip" in printed


def test_card_survives(tmp_path, capsys):
    model = scfmlip.load(path(MODEL))
    model.provenance = {
        "data": {"files": ["mine.xyz"], "frames": {"train": 3}},
        "errors": {"valid": {"e": 0.5}},
    }
    file = tmp_path / "m.safetensors"
    scfmlip.save(model, file)
    assert scfmlip.load(file).provenance == model.provenance
    assert main(["info", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "files mine.xyz; frames train 3" in printed
    assert f"scfmlip {scfmlip.__version__}" in printed
    assert f"{sum(p.numel() for p in model.parameters()):,} float32" in printed
    assert main(["info", str(file), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["elements"] == ["H", "O", "Al"]
    assert card["cutoff"] == 4.5
    assert card["units"]["energy"] == "eV"
    assert card["versions"]["torch"] == torch.__version__ or card["versions"]["torch"] in torch.__version__


def test_a_pickle_needs_trust(tmp_path, capsys):
    file = tmp_path / "m.model"
    torch.save(mace_model(), file)
    assert main(["info", str(file)]) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert main(["info", str(file), "--trust-pickle"]) == 0
    printed = capsys.readouterr().out
    assert "ScaleShiftMACE" in printed
    assert "H, O, Si" in printed


def test_mistakes(tmp_path, capsys):
    bad = tmp_path / "m.safetensors"
    bad.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert main(["info", str(bad)]) == 2
    assert "not a safetensors file" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "none.safetensors")]) == 2
    assert "there is no model file" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"scfmlip {scfmlip.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(capsys, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("evaluate", "init", "trust-pickle"):
        assert word in script
    if shell == "bash" and shutil.which("bash"):
        words = (
            "source /dev/stdin; COMP_WORDS=(scfmlip ev); COMP_CWORD=1; _shtab_scfmlip; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(
            ["bash", "-c", words], input=script, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["evaluate"], done.stderr
