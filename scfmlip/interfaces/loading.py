"""Load models from files: our safetensors, which hold data only, and mace-torch's pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_model(
    model: torch.nn.Module | str | Path, device: torch.device, trust_pickle: bool = False
) -> torch.nn.Module:
    """
    Load a model from memory, from a file of `scfmlip.save`, or from a file that mace-torch wrote.

    Args:
        model: The model, or its file.
        device: Device of the weights.
        trust_pickle: Whether to read pickles. A mace-torch file is a pickle, and reading it runs whatever
            code its author put there.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a pickle without ``trust_pickle``, or a file that is damaged or not a model.
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
    # safetensors: the header's length, then the header in JSON
    if path.suffix == ".safetensors" or start[8:] == b"{":
        from ..models import load

        return load(path, device)
    parts = _parts(path)
    # a pickle starts like this, in an archive or by itself
    if "data.pkl" not in parts and start[:1] != b"\x80":
        what = "is not a model file" if start else "is empty"
        what = "is truncated or damaged" if start[:2] == b"PK" and not parts else what
        raise ValueError(f"{path} {what}: pass *.safetensors of scfmlip.save, or *.model of mace_run_train")
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
    """Names of the files in an archive; empty for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return set()


def _unpickle(path: Path, device: torch.device, trusted: bool) -> Any:
    """Read a pickle if it is harmless or trusted."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch may raise anything
        if not trusted:
            raise ValueError(
                f"{path} is a pickle: reading it runs whatever code its author put there. If you trust its "
                "source, pass trust_pickle=True, or --trust-pickle on the command line. `scfmlip convert "
                "--trust-pickle` converts it once to a safetensors file, which runs no code"
            ) from error
    import mace.modules  # noqa: F401  (registers what the pickle names)

    try:
        return torch.load(path, map_location=device, weights_only=False)
    except ImportError as error:
        raise ImportError(f"{path} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or of another mace-torch version ({type(error).__name__}: {error})"
        ) from error
