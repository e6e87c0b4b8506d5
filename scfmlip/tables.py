"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """
    Columns of text, each as wide as its widest entry, under a line.

    Example:
        >>> print(format_table(("label", "frames"), [("energy", 31), ("forces", 31)]))
        label   frames
        ------  ------
        energy  31
        forces  31
    """
    cells = [[str(value) for value in row] for row in (head, ["-" * len(h) for h in head], *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells[1] = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
