"""Every error message of the code, by the part that raises it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# folders and files, in the order of the page; the first that fits counts
PARTS = {
    "Command line": ("scfmlip/cli",),
    "Files, structures, frames": (
        *("scfmlip/files.py", "scfmlip/structures.py", "scfmlip/data"),
        "scfmlip/mace_torch/inputs.py",
    ),
    "Models": ("scfmlip/models",),
    "mace-torch's models": ("scfmlip/mace_torch",),
    "Training": ("scfmlip/training",),
    "Dynamics": ("scfmlip/md",),
    "Other programs": ("scfmlip/interfaces", "scfmlip/distributed"),
    "Coulomb operator": ("scfmlip/electrostatics",),
    "Solvers": ("scfmlip/scf",),
    "Layers": ("scfmlip/nn",),
    "Operators": ("kernels",),
    "Elsewhere": ("scfmlip",),
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#$~])")


def template(node: ast.expr) -> str:
    """A message as it is written, with ``…`` where a value stands; "" for what is made elsewhere."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(v) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.IfExp):
        return f"{template(node.body)} / {template(node.orelse)}"
    return ""


def raised(file: Path) -> Iterator[tuple[str, str]]:
    """Names of exceptions and their messages in one file, in its order."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            function, text = node.exc.func, template(node.exc.args[0])
            kind = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            # a name or a number alone tells a reader nothing
            if len(re.findall(r"[a-z]{2,}", text)) > 1:
                yield kind, " ".join(text.split())


def find_messages() -> dict[str, dict[str, str]]:
    """Messages of each part, with the name of the exception."""
    found: dict[str, dict[str, str]] = {name: {} for name in PARTS}
    for file in sorted([*(ROOT / "scfmlip").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]):
        place = file.relative_to(ROOT).as_posix()
        part = next(name for name, starts in PARTS.items() if place.startswith(starts))
        found[part].update({text: kind for kind, text in raised(file)})
    return found


def _escape(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def reference() -> str:
    """Markdown: a heading for each part, a line for each message."""
    parts = []
    for name, messages in find_messages().items():
        if messages:
            lines = [f"* {_escape(text)} ({kind})" for text, kind in sorted(messages.items())]
            parts.append(f"## {name}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)
