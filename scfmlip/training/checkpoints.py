"""The state from which a training resumes."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_text, write_whole

__all__ = [
    "FILES",
    "digests",
    "generators",
    "load_checkpoint",
    "restore_generators",
    "save_checkpoint",
    "write_text",
    "write_whole",
]

FORMAT = 2

# files that a training writes besides its options
FILES = ("checkpoint.pt", "best.safetensors", "log.csv", "errors.json", "loss.png", "parity.png")
_KEYS = (
    "config",
    "model_config",
    "model",
    "best",
    "optimizer",
    "schedule",
    "ema",
    "generators",
    "progress",
    "data",
)


def digests(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of file contents, by path."""
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def generators() -> dict[str, Any]:
    """State of every random number generator of this process, as plain types and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  (others may draw from it)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": json.dumps(random.getstate()),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_generators(state: dict[str, Any]) -> None:
    """Restore the state that `generators` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, last = json.loads(state["python"])
    random.setstate((version, tuple(internal), last))
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state; plain types and tensors only."""
    # write to memory first, because torch hides disk errors
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_whole(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """
    Read a training's state; code in the file is never run.

    Raises:
        ValueError: if the file is not a checkpoint, or was written by another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch may raise anything for a damaged file
        raise ValueError(
            f"{path} is not a checkpoint, or damaged ({type(error).__name__}): --fresh starts over"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of scfmlip: --fresh starts over")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(f"{path} is incomplete, it lacks {', '.join(missing)}: --fresh starts over")
    return state
