"""Triton kernels written as source text: a writer of lines, and the kernel that a text defines."""

import hashlib
import linecache
from functools import lru_cache
from types import FunctionType
from typing import Any

import triton
import triton.language as tl


class SourceWriter:
    """Lines of a source, each at a depth of indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, depth: int, line: str) -> None:
        """One line."""
        self.lines.append("    " * depth + line)

    def add_block(self, text: str, depth: int = 0) -> None:
        """Several lines, indented by ``depth`` more than they are; empty ones around them are left out."""
        for line in text.strip("\n").splitlines():
            self.add(depth, line)

    def source(self) -> str:
        """The text."""
        return "\n".join(self.lines) + "\n"


@lru_cache(maxsize=4096)
def kernel_of(source: str, operator: str, sizes: tuple[str, ...] = (), *helpers: tuple[str, Any]) -> Any:
    """
    The kernel of a source, compiled when it is first launched.

    Args:
        source: Defines one function.
        operator: Whose kernel it is, for tracebacks and profiles.
        sizes: Arguments that must not make it compile again.
        helpers: Names that the source uses beside ``tl``, and what they are.
    """
    name = f"<scfmlip {operator} {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    # triton and debuggers read the source through linecache, which keeps entries without a modification time
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": f"scfmlip_kernels.{operator}.generated", **dict(helpers)}
    before = set(scope)
    exec(compile(source, name, "exec"), scope)
    (function,) = (v for k, v in scope.items() if k not in before and isinstance(v, FunctionType))
    return triton.jit(do_not_specialize=list(sizes))(function)
