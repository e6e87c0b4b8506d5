"""Step by step: gradients, averaged weights, moments and stages are what the options say."""

import copy
import csv
import dataclasses

import pytest
import torch
from ase.io import write as write_frames
from safetensors.torch import load_file

from scfmlip.training import config_from_dict, loss, prepare, setup, train
from scfmlip.training.config import OptimizerConfig
from scfmlip.training.data import EpochBatches, make_loader
from scfmlip.training.loop import Trainer
from scfmlip.training.optimize import Objective, make_optimizer
from scfmlip.training.processes import Processes

from .problems import options, water_frames

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)


@dataclasses.dataclass
class Step:
    """What one step of the optimizer began with, was given, and made of it; copies."""

    model: torch.nn.Module
    batch: dict
    gradients: dict
    moments: int
    after: dict


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def steps(monkeypatch):
    """Every step of the trainings of a test."""
    found, forward, step = [], Objective.forward, torch.optim.AdamW.step
    seen = {}

    def watched_forward(self, batch, *arguments):
        seen.update(model=self.model, copy=copy.deepcopy(self.model), batch=batch)
        return forward(self, batch, *arguments)

    def watched_step(self, *arguments, **named):
        model = seen["model"]
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        moments = max((int(state["step"]) for state in self.state.values()), default=0)
        result = step(self, *arguments, **named)
        found.append(Step(seen["copy"], seen["batch"], gradients, moments, weights(model)))
        return result

    monkeypatch.setattr(Objective, "forward", watched_forward)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    return found


def logged(folder):
    with (folder / "run" / "log.csv").open() as file:
        return list(csv.DictReader(file))


CLIPPED = 0.05


@pytest.mark.parametrize(("kind", "clip", "rule"), [("huber", None, "local"), ("l1", CLIPPED, "fixed_point")])
def test_gradients_are_those_of_the_stages_loss(kind, clip, rule, steps, tmp_path):
    """The mean over the batch of the terms of this stage, in its kind, from its state, clipped."""
    stages = [
        {"epochs": 1, "loss": {"energy": 1, "forces": 10}},
        {"epochs": 1, "loss": {"charges": 5, "energy": 2}},
    ]
    values = options(tmp_path, stages=stages, loss_kind=kind, huber_delta=0.02, clip=clip, batch_size=4)
    if rule == "fixed_point":
        stages[0]["scf"] = "direct"
        values["model"] |= {"rule": {"name": rule, "response_scale": 0.1}, "constraint": "charge"}
    train(values, quiet=True)
    assert len(steps) == 4
    for i, step in enumerate(steps):
        stage = stages[i // 2]
        out = step.model(
            step.batch,
            training=True,
            scf=stage.get("scf", "converged"),
            compute_force="forces" in stage["loss"],
        )
        value = loss(out, step.batch, stage["loss"], kind, 0.02)
        named = dict(step.model.named_parameters())
        parameters = [named[name] for name in step.gradients]
        want = torch.autograd.grad(value, parameters, materialize_grads=True)
        norm = torch.cat([g.flatten() for g in want]).norm()
        # torch divides by the norm and 1e-6
        scale = 1.0 if clip is None else min(1.0, clip / (float(norm) + 1e-6))
        assert clip is None or scale < 1, "nothing was clipped"
        for (name, got), one in zip(step.gradients.items(), want, strict=True):
            torch.testing.assert_close(got, scale * one, rtol=1e-7, atol=1e-9 * float(norm), msg=name)


def test_averaged_weights_are_validated_and_saved(steps, tmp_path, monkeypatch):
    """torch_ema's average by hand, begun anew where the optimizer is; what the log and the file hold."""
    files, write = [], Trainer._write

    def watched_write(self, better):
        write(self, better)
        files.append(load_file(self.folder / "best.safetensors") if better else None)

    monkeypatch.setattr(Trainer, "_write", watched_write)
    terms = {"energy": 1.0, "forces": 10.0}
    stages = [{"epochs": 2, "loss": terms}, {"epochs": 1, "loss": terms, "reset_optimizer": True}]
    write_frames(tmp_path / "valid.xyz", water_frames(2, seed=9))
    data = {"train": str(tmp_path / "frames.xyz"), "valid": str(tmp_path / "valid.xyz")}
    changes = {"stages": stages, "ema_decay": 0.5, "batch_size": 4, "valid_batch_size": 1}
    values = options(tmp_path, data=data, **changes)
    model, graphs, _ = prepare(config_from_dict(values), ALONE)
    train(values, quiet=True)
    valid = graphs["valid"]
    batch = next(iter(make_loader(valid, EpochBatches(len(valid), len(valid), None))))
    rows = logged(tmp_path)
    assert len(rows) == len(files) == 3
    for epoch, row in enumerate(rows):
        if epoch % 2 == 0:  # of a stage that begins
            average, updates = weights(steps[3 * epoch].model), 0
        for step in steps[3 * epoch : 3 * epoch + 3]:
            updates += 1
            decay = min(0.5, (1 + updates) / (10 + updates))
            average = {k: decay * v + (1 - decay) * step.after[k] for k, v in average.items()}
        apart = max(float((v - steps[3 * epoch + 2].after[k]).abs().max()) for k, v in average.items())
        assert apart > 1e-4, "the last weights would do"
        model.load_state_dict(average, strict=False)
        want = float(loss(model(batch, compute_force=True), batch, terms))
        assert float(row["valid_loss"]) == pytest.approx(want, rel=1e-9)
        if files[epoch] is not None:
            for name, value in average.items():
                torch.testing.assert_close(files[epoch][name], value, rtol=1e-10, atol=1e-12)
    assert sum(file is not None for file in files) >= 2


def test_moments_of_the_stage_before(steps, tmp_path):
    """Kept, but where a stage begins anew."""
    stages = [{"epochs": 1}, {"epochs": 1}, {"epochs": 1, "reset_optimizer": True}]
    train(options(tmp_path, stages=stages), quiet=True)
    assert [step.moments for step in steps] == [*range(6), *range(3)]


def test_patience_ends_a_stage(tmp_path, monkeypatch):
    """After two epochs in a row that are not better; the next one counts anew, and is as long as it says."""
    losses = iter([3.0, 1.0, 1.0, 2.0, 5.0, 4.0])
    original = Trainer.evaluate

    def evaluate(self, *arguments):
        found = original(self, *arguments)
        return found | {"loss": next(losses, 0.0)}

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    stages = [{"epochs": 9}, {"epochs": 2}]
    summary = train(options(tmp_path, stages=stages, patience=2), quiet=True)
    assert [int(row["stage"]) for row in logged(tmp_path)] == [0] * 4 + [1] * 2
    assert summary["best_epoch"] == 5


def test_the_optimizer_is_the_one_asked_for(tmp_path):
    """What mixes features decays; readouts, embeddings, radial networks and the charge rule do not."""
    model, _, _ = prepare(config_from_dict(options(tmp_path)), ALONE)
    for name, cls in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        asked = OptimizerConfig(name=name, betas=(0.8, 0.95), amsgrad=False, weight_decay=0.125)
        optimizer = make_optimizer(model, asked, 0.03)
        assert type(optimizer) is cls
        names = {id(p): n for n, p in model.named_parameters()}
        decayed = set()
        for group in optimizer.param_groups:
            assert (group["lr"], group["betas"], group["amsgrad"]) == (0.03, (0.8, 0.95), False)
            if group["weight_decay"] == 0.125:
                decayed = {names[id(p)] for p in group["params"]}
            else:
                assert group["weight_decay"] == 0
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
        assert decayed
        for n in decayed:
            assert "products." in n or "interactions." in n, n
            assert "conv_tp_weights" not in n, n
        for n in set(names.values()) - decayed:
            assert "products." not in n, n
            assert not ("interactions." in n and ".linear" in n), n
