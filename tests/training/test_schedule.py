"""Learning rates by their values, step by step."""

import csv
import math

import pytest
import torch

from scfmlip.training import config_to_dict, setup, train
from scfmlip.training.config import ScheduleConfig
from scfmlip.training.loop import check_same
from scfmlip.training.optimize import Schedule

from .problems import configuration, options

LR = 0.02


def rates(schedule, epochs=6, steps=3, losses=None, warmup=True):
    """The rate of every step of a stage, ``[epochs][steps]``."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    subject = Schedule(optimizer, ScheduleConfig(**schedule), LR, epochs, warmup)
    found = []
    for epoch in range(epochs):
        found.append([])
        for _ in range(steps):
            found[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            subject.after_step()
        subject.after_epoch(0.5**epoch if losses is None else losses[epoch])
    return found, optimizer.param_groups[0]["lr"]


def test_constant():
    assert rates({"name": "constant"}) == ([[LR] * 3] * 6, LR)


def test_exponential():
    found, _ = rates({"name": "exponential", "factor": 0.5})
    assert found == [[pytest.approx(LR * 0.5**epoch)] * 3 for epoch in range(6)]


def test_cosine():
    found, last = rates({"name": "cosine", "min_lr": 0.001})
    want = [0.001 + (LR - 0.001) * (1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(7)]
    assert found == [[pytest.approx(value)] * 3 for value in want[:6]]
    assert last == pytest.approx(0.001)


def test_plateau():
    # better, then three epochs in a row that are not, then five more
    losses = [1.0, 0.5, 0.5, 0.6, 0.49999, 0.5, 0.5, 0.5]
    schedule = {"name": "plateau", "factor": 0.1, "patience": 2, "min_lr": 0.0005}
    found, last = rates(schedule, epochs=8, losses=losses)
    assert [row[0] for row in found] == pytest.approx([LR] * 5 + [0.1 * LR] * 3)
    assert last == pytest.approx(0.0005)


@pytest.mark.parametrize("name", ["constant", "exponential", "cosine", "plateau"])
def test_warm_up_rises_linearly_and_then_the_schedule_begins(name):
    """Seven steps: two epochs of three steps lie within, the third ends the rise."""
    found, last = rates({"name": name, "factor": 0.5, "warmup_steps": 7, "patience": 0}, epochs=6)
    flat = [rate for row in found for rate in row]
    assert flat[:9] == pytest.approx([LR * k / 8 for k in range(1, 8)] + [LR] * 2)
    after = {
        "constant": [LR] * 4,
        "exponential": [LR * 0.5**k for k in range(1, 5)],
        # of six epochs two do not count: the cosine takes four, and ends at its end
        "cosine": [LR * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(1, 5)],
        "plateau": [LR] * 4,
    }[name]
    assert [*(row[0] for row in found[3:]), last] == pytest.approx(after, abs=1e-15)


def test_no_warm_up_in_later_stages():
    found, _ = rates({"name": "constant", "warmup_steps": 7}, warmup=False)
    assert found == [[LR] * 3] * 6


def test_a_training_warms_up_once_and_restarts_its_schedule(tmp_path, monkeypatch):
    """What the optimizer was told in each step, and what the log says."""
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)
    seen, original = [], torch.optim.AdamW.step

    def step(self, *arguments, **named):
        seen.append({group["lr"] for group in self.param_groups})
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    stages = [{"epochs": 3, "lr": 0.01}, {"epochs": 2, "lr": 0.004}]
    schedule = {"name": "exponential", "factor": 0.5, "warmup_steps": 4}
    train(options(tmp_path, stages=stages, schedule=schedule), quiet=True)
    assert all(len(rates) == 1 for rates in seen)
    warm = [0.01 * k / 5 for k in range(1, 5)]
    # 8 frames in batches of 3: three steps an epoch
    want = [*warm, 0.01, 0.01, 0.005, 0.005, 0.005, *[0.004] * 3, *[0.002] * 3]
    assert [min(rates) for rates in seen] == pytest.approx(want)
    with (tmp_path / "run" / "log.csv").open() as file:
        logged = [float(row["lr"]) for row in csv.DictReader(file)]
    assert logged == pytest.approx([0.002, 0.008, 0.005, 0.004, 0.002])


def test_a_warm_up_longer_than_its_stage_is_said(tmp_path, caplog):
    config = options(tmp_path, epochs=1, schedule={"warmup_steps": 3})
    train(config, quiet=True)
    assert "warmup_steps is 3, but the first stage has 3 steps" in caplog.text


def test_a_cosine_does_not_become_longer(tmp_path):
    """Its rate has fallen to the end: more epochs are another schedule, in another stage."""
    progress = {"stage": 0, "stage_epoch": 2}

    def both(name):
        return [config_to_dict(configuration(tmp_path, epochs=n, schedule={"name": name})) for n in (3, 5)]

    with pytest.raises(ValueError, match=r"stages\[0\]\.epochs was 3, is 5"):
        check_same(*both("cosine"), progress)
    check_same(*both("plateau"), progress)
