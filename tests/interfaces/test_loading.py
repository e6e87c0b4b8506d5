"""Files of models: nothing in them is run unless it is trusted."""

import os
import pickle

import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from ase.build import molecule
from mace_torch.mace_models import mace_model
from models.cases import make_model

import scfmlip
from scfmlip.ase import Calculator
from scfmlip.cli import main
from scfmlip.interfaces.ase import load_model

CPU = torch.device("cpu")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it ran"


@pytest.fixture(params=["archive", "legacy", "pickle", "protocol 0", "safetensors"])
def hostile(request, tmp_path, mark):
    file = tmp_path / ("m.safetensors" if request.param == "safetensors" else "m.model")
    if request.param == "pickle":
        file.write_bytes(pickle.dumps(Payload(mark)))
    elif request.param == "protocol 0":
        file.write_bytes(pickle.dumps(Payload(mark), 0))
    else:
        torch.save(Payload(mark), file, _use_new_zipfile_serialization=request.param != "legacy")
    return file


def test_no_door_runs_what_a_file_holds(hostile, mark, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"pickle|not a safetensors|not a model file"):
        Calculator(hostile)
    assert main(["convert", str(hostile), str(tmp_path / "out.safetensors")]) == 2
    frames = tmp_path / "in.xyz"
    molecule("H2O").write(frames)
    out = str(tmp_path / "out.xyz")
    assert main(["evaluate", str(frames), "--model", str(hostile), "-o", out]) == 2
    assert not mark.exists()


def test_a_pickle_says_why_and_how(tmp_path):
    torch.save(mace_model(), tmp_path / "m.model")
    with pytest.raises(ValueError, match=r"runs whatever code.*trust_pickle=True.*--trust-pickle"):
        Calculator(tmp_path / "m.model")
    assert isinstance(load_model(tmp_path / "m.model", CPU, trust_pickle=True), torch.nn.Module)
    # a model in memory needs no trust
    assert Calculator(mace_model()).model is not None


def test_trust_is_what_runs_it(tmp_path, mark):
    """The payload is one that would run."""
    torch.save(Payload(mark), tmp_path / "m.model")
    with pytest.raises(TypeError, match="not a mace-torch model"):
        load_model(tmp_path / "m.model", CPU, trust_pickle=True)
    assert mark.exists()


def test_our_files_are_known_by_what_they_hold(tmp_path):
    scfmlip.save(make_model("local"), tmp_path / "m.weights")
    assert load_model(tmp_path / "m.weights", CPU).config == make_model("local").config


def whole(tmp_path):
    torch.save(mace_model(), tmp_path / "whole.model")
    return (tmp_path / "whole.model").read_bytes()


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda folder: b"", "is empty"),
        (lambda folder: b"hello world", "is not a model file"),
        (lambda folder: whole(folder)[:5000], "is truncated or damaged"),
        (lambda folder: whole(folder)[:-100], "is truncated or damaged"),
        (lambda folder: pickle.dumps([1, 2])[:-3], r"is damaged|is a pickle"),
    ],
)
def test_damaged_files_are_named(content, message, trusted, tmp_path):
    file = tmp_path / "m.model"
    file.write_bytes(content(tmp_path))
    with pytest.raises(ValueError, match=rf"m\.model {message}"):
        load_model(file, CPU, trust_pickle=trusted)


def test_other_files_of_torch_are_named(tmp_path):
    torch.save(mace_model().state_dict(), tmp_path / "state.pt")
    with pytest.raises(TypeError, match="holds a OrderedDict, not a mace-torch model"):
        load_model(tmp_path / "state.pt", CPU)
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(scripted, str(tmp_path / "m_compiled.model"))
    with pytest.raises(TypeError, match=r"scripted model.*without _compiled"):
        load_model(tmp_path / "m_compiled.model", CPU)
