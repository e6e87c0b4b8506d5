"""A training that was stopped goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from ase.io import write
from safetensors.torch import load_file

from scfmlip.training import TrainingError, setup, train
from scfmlip.training.checkpoints import load_checkpoint, write_text
from scfmlip.training.loop import Trainer

from .problems import environment, options, water_frames

STAGES = [
    {"epochs": 3, "lr": 0.01, "loss": {"energy": 1, "forces": 10, "charges": 10}},
    {"epochs": 3, "lr": 0.003, "loss": {"energy": 10, "forces": 10}, "reset_optimizer": True},
]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)


class Stopped(Exception):
    pass


def stop_in_epoch(monkeypatch, epoch, after_batches=1):
    """The next training is cut off in the middle of an epoch."""
    original, count = torch.optim.AdamW.step, [0]

    def step(self, *arguments, **named):
        count[0] += 1
        if count[0] == 3 * epoch + after_batches + 1:
            raise Stopped
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def same(one, two, where=""):
    """Bitwise equality of nested containers; times aside."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            if key not in ("seconds", "output", "config"):
                same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for i, pair in enumerate(zip(one, two, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert one == two or (one != one and two != two), where


@pytest.mark.parametrize(
    ("schedule", "dtype", "epoch"),
    [
        ({"name": "plateau", "patience": 0, "warmup_steps": 4}, "float32", 1),
        ({"name": "cosine"}, "float32", 4),
    ],
)
def test_resume_is_bit_exact(tmp_path, monkeypatch, schedule, dtype, epoch):
    changes = {"stages": STAGES, "schedule": schedule, "dtype": dtype}
    values = options(tmp_path, **changes)
    del values["model"]["dtype"]
    summary = train({**values, "output": str(tmp_path / "whole")}, quiet=True)
    parts = {**values, "output": str(tmp_path / "parts")}
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, epoch)
        with pytest.raises(Stopped):
            train(parts, quiet=True)
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["progress"]["epoch"] == epoch
    torch.manual_seed(5)  # whatever happened in between
    again = train(parts, quiet=True)
    whole, part = (load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "parts"))
    assert part["progress"]["epoch"] == 6
    same(whole, part)
    same(summary, again)
    same(*(load_file(tmp_path / n / "best.safetensors") for n in ("whole", "parts")))
    lines = [(tmp_path / n / "log.csv").read_text().splitlines() for n in ("whole", "parts")]
    assert len(lines[1]) == 7
    assert [x.rsplit(",", 1)[0] for x in lines[0]] == [x.rsplit(",", 1)[0] for x in lines[1]]


def test_random_numbers_go_on(tmp_path, monkeypatch):
    """The penalty on unstable states draws them: each epoch others, the same after a stop."""
    stages = [{"epochs": 2, "lr": 0.01, "loss": {"energy": 1, "scf_stability": 0.1}}]
    values = options(tmp_path, stages=stages)
    values["model"] |= {"rule": {"name": "fixed_point", "response_scale": 0.1}, "constraint": "charge"}
    train({**values, "output": str(tmp_path / "whole")}, quiet=True)
    parts = {**values, "output": str(tmp_path / "parts")}
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1)
        with pytest.raises(Stopped):
            train(parts, quiet=True)
    first = load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["generators"]["torch"]
    train(parts, quiet=True)
    whole, part = (load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "parts"))
    assert not torch.equal(first, whole["generators"]["torch"])
    same(whole, part)


def test_a_finished_training_can_be_made_longer(tmp_path):
    values = options(tmp_path, epochs=2)
    train(values, quiet=True)
    first = (tmp_path / "run" / "log.csv").read_text()
    values["stages"][0]["epochs"] = 4
    assert train(values, quiet=True)["epochs"] == 4
    assert (tmp_path / "run" / "log.csv").read_text().startswith(first)


def test_another_training_is_refused(tmp_path):
    values = options(tmp_path, epochs=1)
    train(values, quiet=True)
    with pytest.raises(ValueError, match=r"another training: batch_size was 3, is 5.*--fresh"):
        train({**values, "batch_size": 5}, quiet=True)
    assert train({**values, "batch_size": 5}, fresh=True, quiet=True)["epochs"] == 1
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        train({**values, "batch_size": 5}, quiet=True)


def test_nan_stops_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    values = options(tmp_path, epochs=3)
    original = Trainer._train_epoch

    def poisoned(self):
        if self.progress.epoch == 2:
            with torch.no_grad():
                next(self.model.parameters()).fill_(torch.nan)
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", poisoned)
    with pytest.raises(TrainingError, match=r"batch 0 of epoch 2 \(frame .*NaN.*keeps 2 epochs.*lr"):
        train(values, quiet=True)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["progress"]["epoch"] == 2
    assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point())
    monkeypatch.undo()
    assert train(values, quiet=True)["epochs"] == 3


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_killed_training_resumes(tmp_path):
    """SIGKILL in the middle of an epoch; the same command goes on to the same bits."""
    values = options(tmp_path, epochs=12)
    write(tmp_path / "frames.xyz", water_frames(30))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "scfmlip", "train", str(tmp_path / "config.yaml"), "--quiet"]
    process = subprocess.Popen(command, env=environment())
    try:
        log = tmp_path / "run" / "log.csv"
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["progress"]["epoch"]
    assert 3 <= reached < 12
    subprocess.run(command, check=True, env=environment())
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, env=environment())
    same(*(load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "run")))
    assert json.loads((tmp_path / "run" / "errors.json").read_text())["epochs"] == 12
