"""What happened on the simulated GPU: launches and waits, with the lines that caused them."""

from __future__ import annotations

import collections
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
# what the graph that is captured repeats
tapes: list[list[Callable[[], Any]]] = []


class Log:
    """
    What happened on the simulated GPU.

    Attributes:
        kernels: Launches of Triton kernels, by name.
        operators: Launches of PyTorch's operators, by name; each counts as one.
        waits: What made the host wait, by kind and place in the sources.
        places: Launches of any kind, by place in the sources.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.kernels: collections.Counter = collections.Counter()
        self.operators: collections.Counter = collections.Counter()
        self.waits: collections.Counter = collections.Counter()
        self.places: collections.Counter = collections.Counter()

    @property
    def launches(self) -> int:
        """Of any kind."""
        return sum(self.kernels.values()) + sum(self.operators.values())

    @property
    def n_waits(self) -> int:
        """How often the host waited."""
        return sum(self.waits.values())

    def wait(self, kind: str) -> None:
        """The host waits; while a graph is captured, a GPU refuses."""
        if tapes:
            raise RuntimeError(
                f"operation not permitted when stream is capturing: {kind}, at {source_line()}"
            )
        self.waits[kind, source_line()] += 1

    def report(self) -> str:
        """Waits by place, and the most frequent launches, as text."""
        lines = [f"{n:5d} {kind:32s} {place}" for (kind, place), n in self.waits.most_common()]
        lines += [f"{n:5d} launches of {name}" for name, n in self.kernels.most_common()]
        lines += [f"{n:5d} launches at {place}" for place, n in self.places.most_common(40)]
        return "\n".join(lines)

    def by_line(self, most: int = 60) -> str:
        """Launches by file and by line, as a table."""
        files: collections.Counter = collections.Counter()
        for place, n in self.places.items():
            files[re.sub(r":\d+( of .*)?", "", place)] += n
        rows = [*files.most_common(20), *self.places.most_common(most)]
        return "\n".join(f"{n:6d} {place}" for place, n in rows)


def source_line() -> str:
    """
    The innermost line of the project, else of mace-torch or e3nn.

    Where `torch.autograd.detect_anomaly` has kept it, that is the line of the forward operation in backward
    passes of PyTorch's operators, and of ours their name with the line of their backward pass.
    """
    here = _innermost((frame.filename, frame.lineno) for frame in reversed(traceback.extract_stack()))
    node = torch._C._current_autograd_node()
    kept = None if node is None else node.metadata.get("traceback_")
    if not kept:
        return here or "elsewhere"
    if node.name().startswith("scfmlip_"):
        return f"{here} of {node.name()}"
    found = re.findall(r'File "(.*?)", line (\d+)', "".join(kept))
    forward = _innermost((name, int(line)) for name, line in reversed(found)) or node.name()
    return f"{forward} backward"


def _innermost(frames: Iterable[tuple[str, int | None]]) -> str | None:
    elsewhere = None
    for name, line in frames:
        path = Path(name)
        if path.name in ("waiting.py", "kept.py", "looks.py"):  # who asks through them
            continue
        if path.is_relative_to(ROOT) and "simulated_gpu" not in path.parts and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{line}"
        if elsewhere is None and any(part in ("mace", "e3nn") for part in path.parts):
            elsewhere = f"{'/'.join(path.parts[-3:])}:{line}"
    return elsewhere
