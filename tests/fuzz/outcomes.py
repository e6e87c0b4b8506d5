"""What a call with random arguments may end in: a right result, or an error of ours that names the cause."""

from __future__ import annotations

import linecache
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
OURS = (ROOT / "scfmlip", ROOT / "kernels")


class WrongError(AssertionError):
    """A call that returned something that is not so; its message says what."""


def check(condition: object, message: str) -> None:
    """Raise `WrongError` unless ``condition``."""
    if not bool(condition):
        raise WrongError(message)


def is_named(error: BaseException) -> bool:
    """Whether a ``raise`` statement of ours made the error: it then says what is wrong and what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    # an error that ours was raised from has its own traceback
    last = frames[-1]
    inside = any(folder in Path(last.filename).resolve().parents for folder in OURS)
    lines = [linecache.getline(last.filename, n) for n in range(last.lineno or 0, (last.end_lineno or 0) + 1)]
    return inside and lines[0].strip().startswith("raise") and len(str(error)) > 20


def fuzz(call: Callable[[np.random.Generator], str], seed: int, number: int) -> Counter[str]:
    """
    Run ``call`` many times, each with a generator of its own.

    Args:
        call: Draws its arguments, calls the library, checks the result (`check`), and says what it was.
        seed: Of the first; the n-th has ``seed + n``.
        number: How many.

    Returns:
        How often each outcome came: what ``call`` returned, or "refused".

    Raises:
        AssertionError: lists the seeds of wrong results and unclear errors.
    """
    counts: Counter[str] = Counter()
    bad = []
    for n in range(seed, seed + number):
        try:
            counts[call(np.random.default_rng(n))] += 1
        except WrongError as error:
            bad.append(f"seed {n}: WRONG {error}")
        except Exception as error:
            if is_named(error):
                counts["refused"] += 1
                continue
            where = traceback.extract_tb(error.__traceback__)[-1]
            bad.append(f"seed {n}: {type(error).__name__}: {error} [{where.filename}:{where.lineno}]"[:400])
    assert not bad, f"{len(bad)} of {number} calls ended badly:\n" + "\n".join(bad[:20])
    return counts
