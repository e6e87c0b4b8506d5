"""Models from files: ours, which are data, and mace-torch's, which are programs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_model(
    model: torch.nn.Module | str | Path, device: torch.device, trust_pickle: bool = False
) -> torch.nn.Module:
    """
    A model, from memory, from `scfmlip.save` (safetensors) or from the file mace-torch wrote.

    Args:
        model: The model, or its file.
        device: Where its weights go.
        trust_pickle: mace-torch's file is a pickle, which runs whatever code its author put there when it is
            read. Only with True is one read.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a pickle without ``trust_pickle``, or a file that is damaged or no model.
        TypeError: for a file that holds something else (a state dict, a scripted model).

    Example:
        >>> import pathlib, tempfile, scfmlip, torch
        >>> from scfmlip.interfaces.loading import load_model
        >>> from scfmlip.models import build
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = build({"elements": ["H", "O"], "rule": "short_range", "backbone": backbone})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scfmlip.save(model, pathlib.Path(folder, "water.safetensors"))
        ...     loaded = load_model(pathlib.Path(folder, "water.safetensors"), torch.device("cpu"))
        >>> type(loaded).__name__
        'Model'
    """
    if isinstance(model, torch.nn.Module):
        return model
    if not isinstance(model, str | Path):
        raise TypeError(f"model must be a model or the name of its file, got {model!r}")
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    # the header's length, and the header in JSON
    if path.suffix == ".safetensors" or start[8:] == b"{":
        from ..models import load

        return load(path, device)
    parts = _parts(path)
    # a pickle begins so, in an archive or by itself
    if "data.pkl" not in parts and start[:1] != b"\x80":
        what = "is no file of a model" if start else "is empty"
        what = "is cut off or damaged" if start[:2] == b"PK" and not parts else what
        raise ValueError(
            f"{path} {what}: pass *.safetensors of scfmlip.save, or the *.model mace_run_train wrote"
        )
    if "constants.pkl" in parts:
        raise TypeError(
            f"{path} holds a scripted model, not a mace-torch model: pass the file that mace_run_train wrote "
            "as *.model, without _compiled"
        )
    loaded = _unpickle(path, device, trust_pickle)
    if not isinstance(loaded, torch.nn.Module) or not hasattr(loaded, "atomic_numbers"):
        raise TypeError(
            f"{path} holds a {type(loaded).__name__}, not a mace-torch model: pass the file that "
            "mace_run_train wrote as *.model"
        )
    return loaded


def _parts(path: Path) -> set[str]:
    """Names of what an archive holds; empty for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return set()


def _unpickle(path: Path, device: torch.device, trusted: bool) -> Any:
    """What is in a pickle, if it is harmless or trusted."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises what it trips over
        if not trusted:
            raise ValueError(
                f"{path} is a pickle: reading it runs whatever code its author put there. If you trust where "
                "it comes from, pass trust_pickle=True, on the command line --trust-pickle. `scfmlip convert "
                "--trust-pickle` makes a safetensors file of it once, which runs nothing"
            ) from error
    import mace.modules  # noqa: F401  (registers what the pickle names)

    try:
        return torch.load(path, map_location=device, weights_only=False)
    except ImportError as error:
        raise ImportError(f"{path} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or not of this mace-torch ({type(error).__name__}: {error})"
        ) from error
