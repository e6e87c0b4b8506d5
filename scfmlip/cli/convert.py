"""``scfmlip convert``: convert mace-torch's model files to ours and back."""

from __future__ import annotations

import argparse
import io
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        help="mace-torch's model files to safetensors and back",
        description="Convert a model between mace-torch's pickle (*.model: MACE, ScaleShiftMACE, "
        "PolarMACE, MACELES) and scfmlip's safetensors file (*.safetensors), with equal results. The pickle "
        "of a MACELES needs the package les, its safetensors file does not. A pickle runs the code it holds "
        "when it is read: --trust-pickle says that you trust the file.",
    )
    parser.add_argument("input", type=Path, help="*.safetensors is read as ours, anything else as mace's")
    parser.add_argument("output", type=Path, help="*.safetensors is written as ours, anything else as mace's")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read a pickle, which runs the code it holds"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    import torch

    from ..files import check_new, write_whole
    from ..interfaces.ase import load_model
    from ..models import Model, save
    from ..models.convert import from_mace, to_mace

    check_new(arguments.output, arguments.overwrite)
    model = load_model(arguments.input, torch.device("cpu"), arguments.trust_pickle)
    if arguments.output.suffix == ".safetensors":
        if not isinstance(model, Model):
            model = from_mace(model)
            model.provenance["converted from"] = arguments.input.name
        save(model, arguments.output)
    else:
        # write to memory first, because torch hides disk errors
        buffer = io.BytesIO()
        torch.save(to_mace(model) if isinstance(model, Model) else model, buffer)
        write_whole(arguments.output, lambda file: file.write(buffer.getbuffer()))
    print(f"wrote {arguments.output}")
    return 0
