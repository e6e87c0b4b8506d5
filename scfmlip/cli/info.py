"""``scfmlip info``: what a model's file says of itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "info",
        help="print what a model's file says of itself",
        description="Print the card of a model's file: charge rule, elements, cutoff, what it needs of a "
        "frame, units, the data it was trained on and its errors there, versions. Of *.safetensors only the "
        "header is read; of a training's checkpoint.pt data only. mace-torch's files are pickles, which are "
        "read with --trust-pickle only.",
    )
    parser.add_argument("model", type=Path, help="*.safetensors, checkpoint.pt, or the file mace wrote")
    parser.add_argument("--json", action="store_true", help="the card as JSON")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read a pickle, which runs the code it holds"
    )
    parser.set_defaults(run=run)


def _card_of_checkpoint(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]] | None:
    """Card of a training's checkpoint and its rows; None for another file."""
    import torch

    from ..models.build import make_config
    from ..models.card import card_of, describe_card
    from ..training.checkpoints import load_checkpoint

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        ours = isinstance(state, dict) and {"model_config", "progress"} <= state.keys()
    except Exception:  # not torch's, or a pickle that holds code
        return None
    if not ours:
        return None
    state = load_checkpoint(path)
    card = state.get("card") or card_of(make_config(state["model_config"]), None) | {"versions": {}}
    progress = state["progress"]
    best = f"epoch {progress['best_epoch']}, validation loss {progress['best']:.4g}"
    card = card | {"training": {"epochs": progress["epoch"], "best": best}}
    rows = [("checkpoint", f"of a training, after {progress['epoch']} epochs; best {best}")]
    return card, rows + describe_card(card)


def _card_of_pickle(path: Path, trusted: bool) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What can be seen of a mace-torch model; of one that `scfmlip convert` wrote, its card."""
    import torch
    from ase.data import chemical_symbols

    from ..interfaces.loading import load_model
    from ..mace_torch.protocol import required_info
    from ..models.card import CARD, describe_card

    model = load_model(path, torch.device("cpu"), trusted)
    kind = f"mace-torch's {type(model).__name__}"
    if CARD in vars(model):
        card = json.loads(vars(model)[CARD])
        return card | {"model": kind}, [("model", kind), *describe_card(card)]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    elements = [chemical_symbols[int(z)] for z in model.atomic_numbers]  # type: ignore[union-attr]
    card = {
        "model": kind,
        "elements": ", ".join(elements),
        "cutoff": f"{float(model.r_max):g} angstrom",  # type: ignore[arg-type]
        "weights": f"{sum(p.numel() for p in model.parameters()):,} {dtype}",
        "needs": ", ".join(f"atoms.info[{key!r}]" for key in required_info(model)) or "positions only",
        "heads": ", ".join(getattr(model, "heads", None) or ["Default"]),
    }
    return card, [(name, str(value)) for name, value in card.items()]


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from ..models.card import describe_card
    from ..models.checkpoint import read_card

    if not arguments.model.is_file():
        raise FileNotFoundError(f"there is no model file {arguments.model}")
    with open(arguments.model, "rb") as file:
        ours = arguments.model.suffix == ".safetensors" or file.read(9)[8:] == b"{"
    if ours:
        card: dict = read_card(arguments.model)
        rows = describe_card(card)
    else:
        found = _card_of_checkpoint(arguments.model)
        card, rows = found or _card_of_pickle(arguments.model, arguments.trust_pickle)
    if arguments.json:
        print(json.dumps(card, indent=2))
        return 0
    width = max(len(name) for name, _ in rows)
    print(arguments.model)
    for name, value in rows:
        print(f"  {name:{width}s}  {value}")
    return 0
