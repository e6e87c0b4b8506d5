"""The reference of the command line, from its parsers."""

from __future__ import annotations

import argparse
import os

from scfmlip.cli import build_parser


def _options(parser: argparse.ArgumentParser) -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 and action.option_strings else "")
        if isinstance(value, tuple):
            value = " ".join(value)
        if action.choices and not action.metavar:
            value = "\\|".join(map(str, action.choices))
        names = ", ".join(action.option_strings) or action.dest
        name = f"`{names}`" + (f" {value}" if action.option_strings and value else "")
        default = action.default
        shown = "" if default in (None, argparse.SUPPRESS, False) else f"`{default}`"
        if isinstance(default, list):
            shown = f"`{' '.join(map(str, default))}`"
        text = (action.help or "").replace("|", "\\|").replace("%%", "%").replace("*", "\\*")
        rows.append(f"| {name} | {shown} | {text} |")
    return "\n".join(rows)


def reference() -> str:
    """Markdown: every command with its usage and options."""
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [f"{parser.description}\n\n{parser.epilog}\n\n```text\n{parser.format_usage().strip()}\n```"]
    for name, command in commands.choices.items():
        about = (command.description or "").replace("*", "\\*")
        usage = command.format_usage().strip()
        parts.append(
            f"## scfmlip {name} {{ #{name} }}\n\n{about}\n\n```text\n{usage}\n```\n\n{_options(command)}"
        )
    return "\n\n".join(parts)
