"""The file a run goes on from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from ..files import write_whole

FORMAT = 1
_KEYS = (
    "config",
    "digests",
    "step",
    "numbers",
    "positions",
    "cell",
    "momenta",
    "integrator",
    "calculator",
    "first",
    "written",
)


def digest(path: str | Path) -> str:
    """SHA-256 of what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_restart(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state, whole or not at all; plain types and tensors only."""
    # torch hides what the disk says: it writes to memory
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_whole(path, lambda file: file.write(buffer.getbuffer()))


def load_restart(path: Path) -> dict[str, Any]:
    """
    Read a run's state; code in the file is never run.

    Raises:
        ValueError: if the file is no restart file, damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever the damaged file makes it trip over
        raise ValueError(
            f"{path} is no restart file, or damaged ({type(error).__name__}): --fresh starts over"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of scfmlip: --fresh starts over")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(
            f"{path} is no whole restart file, it lacks {', '.join(missing)}: --fresh starts over"
        )
    return state
