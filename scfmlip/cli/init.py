"""``scfmlip init``: look at structures and write a training file for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..training.survey import Survey


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "init",
        help="write a training file for structures of yours",
        description="Look at files of structures: elements, periodicity, labels and the keys they stand "
        "under, total charges, fields, isolated atoms. Print what was found and write a YAML file for "
        "scfmlip train, with comments, a charge rule and why that one. It is a start, to be edited.",
    )
    parser.add_argument("input", type=Path, nargs="+", help="structures: extended XYZ, HDF5 of mace, ...")
    parser.add_argument("-o", "--output", type=Path, default=Path("train.yaml"), help="file (train.yaml)")
    parser.add_argument("--rule", help="charge rule, instead of the proposed one")
    parser.add_argument("--epochs", type=int, default=180, help="of all stages (default 180)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--quiet", action="store_true", help="print the name of the file only")
    parser.set_defaults(run=run)


def describe(found: Survey) -> str:
    """What was found, as text with a table."""
    from ..tables import format_table

    low, high = found.atoms
    kinds = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, n in found.kinds.items())
    elements = ", ".join(f"{symbol} {n}" for symbol, n in found.elements.items())
    lines = [f"{found.frames} frames of {low} to {high} atoms: {kinds}", f"atoms: {elements}", ""]
    rows = [
        (name.replace("_", " "), label.key, label.count, f"{label.low:.6g} to {label.high:.6g}")
        for name, label in found.labels.items()
    ]
    for name, counted in (("total charge", found.total_charges), ("multiplicity", found.spins)):
        if counted:
            values = ", ".join(f"{value:g}" for value in sorted(counted))
            rows.append((name, "of atoms.info", sum(counted.values()), values))
    if found.fields:
        rows.append(("external field", "external_field", found.fields, ""))
    if found.heads:
        rows.append(("head", "head", sum(found.heads.values()), ", ".join(sorted(found.heads))))
    lines.append(format_table(("label", "key", "frames", "values"), rows))
    if found.isolated:
        lines.append(f"reference atoms: {', '.join(sorted(set(found.isolated)))}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    import yaml

    from ..files import check_new, write_text
    from ..models.rules.registry import rule_class
    from ..training import DataConfig, config_from_dict
    from ..training.frames import iterate, read_frames
    from ..training.proposal import propose, propose_rule
    from ..training.survey import survey

    check_new(arguments.output, arguments.overwrite)
    if arguments.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {arguments.epochs}")
    if arguments.rule is not None:
        rule_class(arguments.rule)  # named if there is none
    files = [str(path) for path in arguments.input]
    frames, names = [], []
    for path in files:
        mine = read_frames(path, DataConfig(train=(path,)), "init")
        frames += list(iterate(mine))
        names += [f"frame {i} of {path}" for i in range(len(mine))]
    found = survey(frames, names)
    text = propose(found, files, arguments.rule, arguments.epochs)
    # what is written can be read
    config_from_dict(yaml.safe_load(text))
    write_text(arguments.output, text)
    if not arguments.quiet:
        rule, why = propose_rule(found)
        print(describe(found))
        print(f"\nproposed rule: {rule}. {'; '.join(why)}")
    print(f"wrote {arguments.output}; next: scfmlip train {arguments.output} --check")
    return 0
