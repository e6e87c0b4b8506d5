"""Bars for long measurements: on standard error, silent where it is no terminal; results stand above."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """
    A bar over ``items``, or of ``total`` steps by `update`.

    Nothing of it runs while something is measured: there is no thread that watches it.
    """

    monitor_interval = 0

    def __init__(
        self, items: Iterable[Any] | None = None, unit: str = "case", total: int | None = None
    ) -> None:
        super().__init__(items, unit=unit, total=total, disable=None, leave=False, dynamic_ncols=True)


def say(*words: object) -> None:
    """Print a line to standard output at once, above a bar if there is one."""
    Bar.write(" ".join(map(str, words)))
    sys.stdout.flush()
