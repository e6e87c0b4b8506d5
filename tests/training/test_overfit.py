"""Every rule learns eight frames by heart."""

import pytest

from scfmlip.models import rule_names
from scfmlip.training import setup, train

from .problems import options, water_frames

CHARGES = {"H": 0.4, "O": -0.8}
# options and constraint of the rules that do not go without
NEEDS = {
    "fixed": ({"charges": CHARGES}, "charge"),
    "local_split": ({"charges": CHARGES}, "charge"),
    "equilibrated": ({}, "charge"),
    "functional": ({}, "charge"),
    "fixed_point": ({}, "charge"),
    "recursion": ({}, "charge_spin"),
}
CASES = [
    *((name, {}) for name in rule_names()),
    ("equilibrated", {"feedback": {}}),
    ("fixed_point", {"response": "mlp"}),
    ("fixed_point", {"response": "many_body"}),
    ("fixed_point", {"response": "passive", "energy": "variational"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "choice"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_eight_frames(rule, choice, tmp_path, monkeypatch):
    """To 1 meV/atom and 10 meV/angstrom."""
    for name in ("plot_history", "plot_parity", "parity"):
        monkeypatch.setattr(setup, name, lambda *_: None)
    more, constraint = NEEDS.get(rule, ({}, "none"))
    values = options(
        tmp_path,
        frames=water_frames(8, shake=0.04),
        data={"train": str(tmp_path / "frames.xyz"), "valid_fraction": 0.0},
        stages=[{"epochs": 400, "lr": 0.02, "loss": {"energy": 10, "forces": 1}}],
        schedule={"name": "cosine", "warmup_steps": 10},
        batch_size=2,
        ema_decay=0.98,
        checkpoint_interval=1000,
    )
    values["model"] |= {
        "rule": {"name": rule, **more, **choice},
        "constraint": constraint,
        "density": {"l_max": 1, "sigma": 1.0},
    }
    values["model"]["backbone"] |= {
        "num_interactions": 2,
        "hidden_irreps": "16x0e+16x1o",
        "MLP_irreps": "16x0e",
        "radial_MLP": [32],
        "max_ell": 2,
        "correlation": 2,
        "num_bessel": 8,
    }
    errors = train(values, quiet=True)["train"]
    assert errors["energy_rmse"] < 1e-3, errors
    assert errors["forces_rmse"] < 1e-2, errors
