"""A self-consistent model in two stages: at the reference density, then converged."""

import csv
import math

from scfmlip.training import setup, train

from .problems import options


def test_direct_then_converged(tmp_path, monkeypatch):
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)
    terms = {"energy": 1, "forces": 1, "charges": 10}
    values = options(
        tmp_path,
        stages=[
            {"epochs": 4, "lr": 0.01, "loss": terms, "scf": "direct"},
            {"epochs": 3, "lr": 0.01, "loss": terms | {"scf_stability": 0.1}},
        ],
    )
    values["model"] |= {"rule": {"name": "fixed_point", "response_scale": 0.1}, "constraint": "charge"}
    values["model"]["dtype"] = "float32"
    errors = train(values, quiet=True)["train"]
    assert all(math.isfinite(v) for v in errors.values()), errors
    with (tmp_path / "run" / "log.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 7
    # each stage has a loss of its own
    assert losses[3] < losses[0]
    assert losses[6] < losses[4]
