"""``scfmlip train``: what a user types and sees."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

import scfmlip.models
from scfmlip.cli import main

_spec = importlib.util.spec_from_file_location(
    "train_problems", Path(__file__).parents[1] / "training" / "problems.py"
)
assert _spec is not None
assert _spec.loader is not None
problems = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(problems)


def write(folder, **changes):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(problems.options(folder, **changes)))
    return str(path)


def test_train(tmp_path, capsys):
    config = write(tmp_path, epochs=1)
    assert main(["train", config, "--check"]) == 0
    assert "is fine" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["train", config, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "1 epochs, best 0" in printed
    assert "valid RMSE: energy" in printed
    for name in ("best.safetensors", "checkpoint.pt", "log.csv", "errors.json", "loss.png", "parity.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    assert scfmlip.models.load(tmp_path / "run" / "best.safetensors").config.elements == (1, 8)
    # the summary is the file's, in the units it names
    rmse = json.loads((tmp_path / "run" / "errors.json").read_text())["valid"]["energy_rmse"]
    assert f"valid RMSE: energy {1000 * rmse:.4g} meV/atom" in printed
    # the folder says how it came about
    again = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert again["stages"][0]["epochs"] == 1
    # what the command line says comes before the file
    assert main(["train", config, "--quiet", "-o", str(tmp_path / "there"), "--device", "cpu"]) == 0
    assert "there holds the model" in capsys.readouterr().out
    assert (tmp_path / "there" / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "no option 'epoch'"),
        ({"data": {"train": "nowhere.xyz"}}, "there is no file nowhere.xyz"),
        ({"device": "abacus"}, "must be auto, cpu or cuda"),
        ({"stages": [{"epochs": 1, "loss": {"stress": 1}}]}, "'REF_stress' (data.stress_key)"),
        ({"model": {"rule": "magic"}}, "no charge rule 'magic'"),
    ],
)
def test_mistakes_take_one_line(tmp_path, capsys, change, message):
    assert main(["train", write(tmp_path, **change), "--quiet"]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert printed[-1].startswith("scfmlip train: ")


def test_wandb_hears_every_epoch(tmp_path, monkeypatch):
    """The optional log; a stand-in takes the place of a package that talks to a server."""
    heard = []

    class Run:
        log = staticmethod(heard.append)

        @staticmethod
        def finish():
            heard.append("finished")

    stub = type(sys)("wandb")
    stub.init = lambda **options: heard.append(options) or Run
    monkeypatch.setitem(sys.modules, "wandb", stub)
    assert main(["train", write(tmp_path, epochs=2, wandb={"project": "p"}), "--quiet"]) == 0
    assert heard[0]["project"] == "p"
    assert [row["epoch"] for row in heard[1:3]] == [0, 1]
    assert heard[3:] == ["finished"]
