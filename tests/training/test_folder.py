"""What a training does to the folder it writes to: nothing is lost, and no two mix."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from ase.io import read, write
from safetensors.torch import load_file

import scfmlip.models
from scfmlip.files import locked
from scfmlip.training import TrainingError, setup, train
from scfmlip.training.checkpoints import FILES, load_checkpoint
from scfmlip.training.loop import Trainer

from .problems import environment, options


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def trained(tmp_path):
    """Options of a training of two epochs, which has been done."""
    values = options(tmp_path, epochs=2)
    train(values, quiet=True)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train": "nowhere.xyz"}}, "there is no file nowhere.xyz"),
        ({"stages": [{"epochs": 1, "loss": {"stress": 1}}]}, "REF_stress"),
        ({"model": {"rule": "magic"}}, "no charge rule"),
        ({"stages": [{"epochs": 1, "lr": 1e30}]}, "the loss is nan"),
    ],
)
def test_a_fresh_start_that_fails_loses_nothing(change, message, trained, tmp_path):
    before = content(tmp_path / "run")
    with pytest.raises((FileNotFoundError, ValueError, TrainingError), match=message):
        train({**trained, **change}, fresh=True, quiet=True)
    assert content(tmp_path / "run") == before


def test_a_fresh_start_replaces_what_was_there(trained, tmp_path, monkeypatch):
    (tmp_path / "run" / "parity.png").write_bytes(b"of the training before")
    first = content(tmp_path / "run")
    original, seen = Trainer._write, []

    def write_epoch(self, better):
        seen.append(content(tmp_path / "run"))
        original(self, better)
        seen.append(content(tmp_path / "run"))

    monkeypatch.setattr(Trainer, "_write", write_epoch)
    trained["seed"] = 5
    train(trained, fresh=True, quiet=True)
    same = ("checkpoint.pt", "best.safetensors", "log.csv", "errors.json", "parity.png")
    assert all(seen[0][name] == first[name] for name in same)
    # after the first epoch everything is of the new training
    assert set(seen[1]) == {".lock", "config.yaml", "checkpoint.pt", "best.safetensors", "log.csv"}
    assert all(seen[1][name] != first[name] for name in ("checkpoint.pt", "best.safetensors", "log.csv"))


def test_a_first_epoch_without_a_best_model_keeps_no_old_one(trained, tmp_path, monkeypatch):
    """Else that of the training before would be reported as this one's."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *_: {"loss": float("inf"), "unconverged": 1.0})
    train({**trained, "seed": 5}, fresh=True, quiet=True)
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("damage", ["deleted", "cut off", "another"])
def test_the_best_model_comes_back(damage, trained, tmp_path):
    """The first epoch was the best one; what became of its file does not matter."""
    best = tmp_path / "run" / "best.safetensors"
    want = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["best"]
    if damage == "deleted":
        best.unlink()
    elif damage == "cut off":
        best.write_bytes(best.read_bytes()[:100])
    else:
        other = scfmlip.models.load(best)
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        scfmlip.save(other, best)
    errors = json.loads((tmp_path / "run" / "errors.json").read_text())
    again = train(trained, quiet=True)
    found = load_file(best)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert again["valid"] == errors["valid"]


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path, monkeypatch):
    """Validation losses by hand: the second of four epochs is the best, whatever comes after."""
    losses = iter([3.0, 1.0, 2.0, 2.5])
    weights, original = [], Trainer.evaluate

    def evaluate(self, name, *arguments):
        found = original(self, name, *arguments)
        value = next(losses, None)
        if value is not None:
            with self._average():
                weights.append({k: v.clone() for k, v in self.model.state_dict().items()})
            found["loss"] = value
        return found

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    summary = train(options(tmp_path, epochs=4), quiet=True)
    assert summary["best_epoch"] == 1
    found = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(found[name], weights[1][name]) for name in found)


def test_the_first_epoch_is_kept_whatever_the_interval(tmp_path, monkeypatch):
    original = Trainer._train_epoch

    def stop(self):
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", stop)
    values = options(tmp_path, epochs=4, checkpoint_interval=10)
    with pytest.raises(KeyboardInterrupt):
        train(values, quiet=True)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]["epoch"] == 1
    monkeypatch.undo()
    assert train(values, quiet=True)["epochs"] == 4


def test_changed_data_are_seen(trained, tmp_path):
    frames = read(tmp_path / "frames.xyz", ":")
    before = (tmp_path / "frames.xyz").read_bytes()
    frames[0].info["REF_energy"] += 1.0
    write(tmp_path / "frames.xyz", frames)
    with pytest.raises(ValueError, match=r"frames\.xyz changed since the checkpoint was written"):
        train(trained, quiet=True)
    (tmp_path / "frames.xyz").write_bytes(before)
    assert train(trained, quiet=True)["epochs"] == 2


@pytest.mark.parametrize("name", [name for name in FILES if name != "checkpoint.pt"])
def test_files_of_somebody_else_stay(name, tmp_path):
    values = options(tmp_path, epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name}, but no checkpoint.pt to resume from.*--fresh"):
        train(values, quiet=True)
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_the_users_own_options_stay(tmp_path):
    values = options(tmp_path, epochs=1)
    (tmp_path / "run").mkdir()
    mine = "# why I do this\n" + yaml.safe_dump(values)
    (tmp_path / "run" / "config.yaml").write_text(mine)
    for _ in range(2):
        train(values, quiet=True)
        assert (tmp_path / "run" / "config.yaml").read_text() == mine
        assert yaml.safe_load((tmp_path / "run" / "options.yaml").read_text())["batch_size"] == 3


def test_going_on_needs_no_starting_model(trained, tmp_path):
    """Its weights are in the checkpoint; a training never writes over the file it starts from."""
    start = tmp_path / "start.safetensors"
    shutil.copy(tmp_path / "run" / "best.safetensors", start)
    values = {k: v for k, v in trained.items() if k != "model"}
    values |= {"start_from": str(start), "output": str(tmp_path / "next")}
    train(values, quiet=True)
    start.unlink()
    values["stages"][0]["epochs"] = 3
    assert train(values, quiet=True)["epochs"] == 3


def test_two_trainings_do_not_mix(trained, tmp_path):
    before = content(tmp_path / "run")
    with locked(tmp_path / "run", "trains a model"):
        for fresh in (False, True):
            with pytest.raises(BlockingIOError, match=r"another process trains a model in .*run"):
                train(trained, fresh=fresh, quiet=True)
    assert content(tmp_path / "run") == before
    assert train(trained, quiet=True)["epochs"] == 2
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_training_that_cannot_start_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(options(tmp_path, data={"train": "nowhere.xyz"}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_named_and_the_last_epoch_stays(trained, tmp_path, monkeypatch):
    before = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    trained["stages"][0]["epochs"] = 4

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(setup, "_write_options", lambda *_: None)
    with pytest.raises(OSError, match="No space left"):  # the best model is written first on resuming
        train(trained, quiet=True)
    monkeypatch.setattr("scfmlip.training.loop.save", lambda *_: None)
    with pytest.raises(TrainingError, match=r"epoch 2 cannot be written: No space left .*keeps 2 epochs"):
        train(trained, quiet=True)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"] == before["progress"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_training(number, tmp_path):
    """Quietly, and the same command goes on."""
    values = options(tmp_path, epochs=400)
    values["data"]["num_workers"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "scfmlip", "train", str(tmp_path / "config.yaml"), "--quiet"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    children = listed.stdout.split()
    assert len(children) >= 2
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode in ({143} if number == signal.SIGTERM else {130, -2})
    assert "Traceback" not in printed
    remaining = subprocess.run(["ps", "-o", "pid=", "-p", ",".join(children)], capture_output=True, text=True)
    assert not remaining.stdout.split()
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]["epoch"] >= 3
