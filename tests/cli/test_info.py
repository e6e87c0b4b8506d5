"""``scfmlip info``, ``--version``, ``completion``: what a user types and sees."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mace_torch.mace_models import mace_model

import scfmlip
from scfmlip.cli import main
from scfmlip.data import path
from scfmlip.training import train

ROOT = Path(__file__).parents[2]
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


def test_json_is_all_there_is_without_cuequivariance():
    """What mace-torch prints to standard output when the optional package is missing is no part of ours."""
    text = (
        "import sys; sys.modules['cuequivariance'] = None; from scfmlip.cli import main; main(sys.argv[1:])"
    )
    source = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", text, "info", str(path(MODEL)), "--json"],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["elements"] == ["H", "O", "Al"]
    assert "disabled" not in done.stderr


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


def test_card_goes_to_mace_torch_and_back(tmp_path, capsys):
    """A converted file says where it comes from; one that was converted back keeps what it said."""
    given, ours, back, again = (
        tmp_path / n for n in ("m.model", "m.safetensors", "b.model", "a.safetensors")
    )
    torch.save(mace_model(), given)
    assert main(["convert", "--trust-pickle", str(given), str(ours)]) == 0
    source = {"source": "mace-torch's ScaleShiftMACE", "converted from": "m.model"}
    assert scfmlip.load(ours).provenance == source
    model = scfmlip.load(ours)
    model.provenance["data"] = {"files": ["mine.xyz"]}
    scfmlip.save(model, ours)
    assert main(["convert", str(ours), str(back)]) == 0
    capsys.readouterr()
    assert main(["info", str(back), "--trust-pickle"]) == 0
    printed = capsys.readouterr().out
    assert "mace-torch's ScaleShiftMACE" in printed
    assert "files mine.xyz" in printed
    assert f"scfmlip {scfmlip.__version__}" in printed
    assert main(["info", str(back), "--trust-pickle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"] == "short_range"
    assert main(["convert", "--trust-pickle", str(back), str(again)]) == 0
    assert scfmlip.load(again).provenance["data"] == {"files": ["mine.xyz"]}


def test_card_of_a_checkpoint(tmp_path, capsys):
    """Every file of a training has a card: the checkpoint too, also one without (of an earlier version)."""
    backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
    values = {"data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5}, "output": str(tmp_path)}
    values |= {"model": {"rule": "short_range", "backbone": backbone}, "stages": [{"epochs": 1}]}
    train(values, quiet=True)
    file = tmp_path / "checkpoint.pt"
    assert main(["info", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "after 1 epochs; best epoch 0, validation loss" in printed
    assert "files al_water.xyz; frames train 1; valid 1" in printed
    assert f"scfmlip {scfmlip.__version__}" in printed
    assert main(["info", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["epochs"] == 1
    state = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "card"}, file)
    assert main(["info", str(file)]) == 0
    assert "earlier scfmlip" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "best.safetensors")]) == 0
    assert "errors" in capsys.readouterr().out


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
