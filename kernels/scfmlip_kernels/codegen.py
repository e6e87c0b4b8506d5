"""Triton kernels from generated source text: a line writer, and the kernel that a text defines."""

import hashlib
import linecache
from functools import lru_cache
from types import FunctionType
from typing import Any

import triton
import triton.language as tl


class SourceWriter:
    """Collects lines of source text, each with its indentation depth."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, depth: int, line: str) -> None:
        """One line."""
        self.lines.append("    " * depth + line)

    def add_block(self, text: str, depth: int = 0) -> None:
        """Add several lines, indented by ``depth`` more; leading and trailing empty lines are dropped."""
        for line in text.strip("\n").splitlines():
            self.add(depth, line)

    def source(self) -> str:
        """The text."""
        return "\n".join(self.lines) + "\n"


@lru_cache(maxsize=4096)
def kernel_of(source: str, operator: str, sizes: tuple[str, ...] = (), *helpers: tuple[str, Any]) -> Any:
    """
    The kernel that a source defines, compiled at its first launch.

    Args:
        source: Text that defines one function.
        operator: Name of the operator, for tracebacks and profiles.
        sizes: Arguments whose values must not trigger another compilation.
        helpers: Pairs of name and value that the source uses besides ``tl``.
    """
    name = f"<scfmlip {operator} {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    # triton and debuggers read the source through linecache, which keeps entries without a modification time
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": f"scfmlip_kernels.{operator}.generated", **dict(helpers)}
    before = set(scope)
    exec(compile(source, name, "exec"), scope)
    (function,) = (v for k, v in scope.items() if k not in before and isinstance(v, FunctionType))
    return triton.jit(do_not_specialize=list(sizes))(function)
