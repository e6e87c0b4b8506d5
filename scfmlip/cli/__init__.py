"""The command line: ``scfmlip evaluate | train | convert | plot | bench | demo | doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from . import bench, convert, demo, doctor, evaluate, plot, train

    parser = argparse.ArgumentParser(
        prog="scfmlip", description="Self-consistent electrostatics for interatomic potentials."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (evaluate, train, convert, plot, bench, demo, doctor):
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: Arguments without the program's name; ``sys.argv`` if None.

    Returns:
        Exit status: 0, or 1 with one line on standard error that says what was wrong.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError, ImportError, RuntimeError) as error:
        print(f"scfmlip {arguments.command}: {error}", file=sys.stderr)
        return 1
