"""``scfmlip completion``: what a shell needs to complete commands, options and names of files."""

from __future__ import annotations

import argparse
from pathlib import Path

SHELLS = ("bash", "zsh", "tcsh")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes scfmlip in a shell",
        description="Print a script that completes commands, options and names of files. bash: put "
        "`source <(scfmlip completion bash)` into ~/.bashrc. zsh: scfmlip completion zsh > "
        "~/.zfunc/_scfmlip, with ~/.zfunc in fpath. tcsh: source its output.",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def _mark_files(parser: argparse.ArgumentParser, file: object) -> None:
    """Says which arguments are names of files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_files(command, file)
        elif action.type is Path:
            action.complete = file  # type: ignore[attr-defined]


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise ImportError("completion needs the package shtab: pip install 'scfmlip[cli]'") from None
    parser = arguments.whole
    _mark_files(parser, shtab.FILE)
    print(shtab.complete(parser, arguments.shell))
    return 0
