"""``scfmlip info``: what a model's file says of itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "info",
        help="print what a model's file says of itself",
        description="Print the card of a model's file: charge rule, elements, cutoff, what it needs of a "
        "frame, units, the data it was trained on and its errors there, versions. Of *.safetensors only the "
        "header is read. mace-torch's files are pickles, which are read with --trust-pickle only.",
    )
    parser.add_argument("model", type=Path, help="*.safetensors of scfmlip.save, or the file mace wrote")
    parser.add_argument("--json", action="store_true", help="the card as JSON")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read a pickle, which runs the code it holds"
    )
    parser.set_defaults(run=run)


def _card_of_pickle(path: Path, trusted: bool) -> dict[str, object]:
    """What can be seen of a mace-torch model."""
    import torch
    from ase.data import chemical_symbols

    from ..interfaces.loading import load_model
    from ..mace_torch.protocol import required_info

    model = load_model(path, torch.device("cpu"), trusted)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    elements = [chemical_symbols[int(z)] for z in model.atomic_numbers]  # type: ignore[union-attr]
    return {
        "model": f"mace-torch's {type(model).__name__}",
        "elements": ", ".join(elements),
        "cutoff": f"{float(model.r_max):g} angstrom",  # type: ignore[arg-type]
        "weights": f"{sum(p.numel() for p in model.parameters()):,} {dtype}",
        "needs": ", ".join(f"atoms.info[{key!r}]" for key in required_info(model)) or "positions only",
        "heads": ", ".join(getattr(model, "heads", None) or ["Default"]),
    }


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
        card = _card_of_pickle(arguments.model, arguments.trust_pickle)
        rows = [(name, str(value)) for name, value in card.items()]
    if arguments.json:
        print(json.dumps(card, indent=2))
        return 0
    width = max(len(name) for name, _ in rows)
    print(arguments.model)
    for name, value in rows:
        print(f"  {name:{width}s}  {value}")
    return 0
