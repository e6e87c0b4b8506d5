"""What a saved model says of itself: elements, rule, cutoff, units, data, versions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from ..mace_torch.inputs import INPUTS
from ..version import __version__
from .config import ModelConfig
from .rules import name_of
from .systems import required_inputs

UNITS = {
    "energy": "eV",
    "length": "angstrom",
    "charge": "e",
    "dipole": "e angstrom",
    "potential": "V",
    "external_field": "V/angstrom, energy + field . dipole",
}
# attribute of a mace-torch model that holds the card it was converted with, as JSON
CARD = "scfmlip_card"
_PACKAGES = ("torch", "mace-torch", "e3nn")


def _versions() -> dict[str, str]:
    found = {"scfmlip": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def card_of(
    config: ModelConfig, n_weights: int | None, provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    The card of a model.

    Args:
        config: Its configuration.
        n_weights: How many weights it has; None if that is not known.
        provenance: What is known of where it comes from: ``data`` it was trained on, ``errors`` there, its
            ``source`` if it was converted.
    """
    from ase.data import chemical_symbols

    backbone, density = config.backbone, config.density
    rule = name_of(config.rule)
    return {
        "rule": rule,
        "constraint": config.constraint,
        "elements": [chemical_symbols[z] for z in config.elements],
        "needs": [INPUTS[key].names[0] for key in required_inputs(config) if key in INPUTS],
        "heads": list(backbone.heads),
        "cutoff": backbone.r_max,
        "backbone": f"{backbone.num_interactions} layers, {backbone.hidden_irreps}, "
        f"correlation {backbone.correlation}",
        "density": None if rule == "short_range" else {"l_max": density.l_max, "sigma": density.sigma},
        "weights": n_weights,
        "dtype": config.dtype,
        "units": UNITS,
        "versions": _versions(),
        "provenance": dict(provenance or {}),
    }


def describe_card(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a card, in words, for people."""
    density, needs = card.get("density"), card.get("needs") or []
    rows = [
        ("charge rule", f"{card.get('rule')}, constraint {card.get('constraint')}"),
        ("elements", ", ".join(card.get("elements", []))),
        ("cutoff", f"{card.get('cutoff'):g} angstrom"),
        ("network", str(card.get("backbone"))),
    ]
    if density:
        kind = ("charges", "charges and dipoles", "charges, dipoles and quadrupoles")[density["l_max"]]
        rows.append(("density", f"Gaussian {kind}, width {density['sigma']:g} angstrom"))
    count = card.get("weights")
    rows.append(("weights", f"{'' if count is None else f'{count:,} '}{card.get('dtype')}"))
    if needs:
        rows.append(("needs", ", ".join(f"atoms.info[{key!r}]" for key in needs)))
    if len(card.get("heads", [])) > 1:
        rows.append(("heads", ", ".join(card["heads"])))
    for name, value in (card.get("provenance") or {}).items():
        rows.append((name, _text(value)))
    rows.append(("units", "; ".join(f"{name} {unit}" for name, unit in card.get("units", {}).items())))
    versions = card.get("versions") or {}
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    rows.append(("written by", known or "an earlier scfmlip, which kept no record"))
    return rows


def _text(value: Any) -> str:
    """A value of a card on one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_text(v)}" for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
