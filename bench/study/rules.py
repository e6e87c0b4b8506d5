"""The rules that are compared, as points of the design space over one backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .sets import Set

# a receptive field of 8 angstrom: less than the distance of Au2 from the dopants below
BACKBONE = {
    "r_max": 4.0,
    "num_interactions": 2,
    "hidden_irreps": "16x0e+16x1o",
    "MLP_irreps": "16x0e",
    "max_ell": 2,
    "correlation": 2,
    "num_bessel": 8,
    "radial_MLP": [32, 32],
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """
    A model of the comparison.

    Attributes:
        name: In tables.
        family: "local": the density of an atom depends on its surroundings only; "global": it answers to
            every other atom.
        rule: Options, without formal charges.
        constraint: See `scfmlip.models`.
        l_max: Of the density.
        formal: Starts from formal charges of the elements.
        charges: Its charges are trained on reference charges.
        stiff: Starts from the set's hardness of the elements; else from the library's own for all of them.
    """

    name: str
    family: str
    rule: dict[str, Any]
    constraint: str = "none"
    l_max: int = 1
    formal: bool = False
    charges: bool = True
    stiff: bool = True


RULES = {
    r.name: r
    for r in (
        Rule("short-range", "local", {"name": "short_range"}, charges=False),
        Rule("local", "local", {"name": "local"}),
        Rule("qeq", "global", {"name": "equilibrated", "local_hardness": True}, "charge"),
        Rule("qeq, soft start", "global", {"name": "equilibrated"}, "charge", stiff=False),
        Rule("fixed-point", "global", {"name": "fixed_point"}, "charge"),
        Rule("functional", "global", {"name": "functional"}, "charge"),
        Rule(
            "nequip-lr",
            "global",
            {"name": "equilibrated", "feedback": {"hidden_irreps": "16x0e"}},
            "charge",
            l_max=0,
        ),
        Rule("mace-polar", "global", {"name": "recursion"}, "charge_spin"),
        Rule("local, charge spread", "local", {"name": "local"}, "charge"),
        Rule("split charges", "local", {"name": "local_split"}, "charge", formal=True),
        Rule("fixed charges", "local", {"name": "fixed"}, "charge", l_max=0, formal=True, charges=False),
        Rule("latent", "local", {"name": "latent"}, charges=False),
        Rule(
            "4g",
            "global",
            {
                "name": "equilibrated",
                "energy": "coulomb",
                "screening": [2.0, 4.0],
                "feedback": {"hidden_irreps": "16x0e"},
            },
            "charge",
            l_max=0,
        ),
        Rule(
            "passive response",
            "global",
            {"name": "fixed_point", "response": "passive", "energy": "variational"},
            "charge",
        ),
        Rule("nonlinear response", "global", {"name": "fixed_point", "response": "mlp"}, "charge"),
        Rule("many-body response", "global", {"name": "fixed_point", "response": "many_body"}, "charge"),
    )
}


def model_options(rule: Rule, which: Set) -> dict[str, Any]:
    """The model's dictionary; what the training frames decide is left to the training."""
    options = dict(rule.rule)
    if rule.formal:
        options["charges"] = dict(which.charges)
    if rule.stiff and options["name"] in ("equilibrated", "functional"):
        options |= {"source": "charge", "hardness": dict(which.hardness)}
    elif rule.stiff and options["name"] == "fixed_point":
        options["response_scale"] = {element: 1 / value for element, value in which.hardness.items()}
    return {
        "rule": options,
        "constraint": rule.constraint,
        "density": {"l_max": rule.l_max, "sigma": which.sigma, "tolerance": 1e-4},
        "backbone": dict(BACKBONE),
        "dtype": "float32",
    }


def training_options(
    rule: Rule, which: Set, seed: int, folder: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Options of one training; ``folder`` holds the set's parts and gets a folder of the run."""
    loss = dict(which.loss)
    if not rule.charges:
        loss.pop("charges", None)
    if rule.name in ("short-range", "fixed charges", "latent"):
        loss.pop("dipole", None)
    lengths = which.epochs if epochs is None else ((epochs, 0.01),)
    stages = [{"epochs": length, "lr": lr, "loss": loss} for length, lr in lengths]
    if rule.charges:
        first = {"epochs": which.charge_epochs, "lr": 0.01, "loss": {"charges": loss["charges"]}}
        stages.insert(0, first)
    slug = rule.name.replace(", ", "-").replace(" ", "-")
    return {
        "output": str(folder / f"{slug}-{seed}"),
        "data": {
            **which.keys,
            **{name: str(folder / f"{name}.xyz") for name in ("train", "valid", "test")},
        },
        "model": model_options(rule, which),
        "stages": stages,
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "batch_size": which.batch_size,
        "ema_decay": 0.98,
        "seed": seed,
        "device": "cpu",
    }
