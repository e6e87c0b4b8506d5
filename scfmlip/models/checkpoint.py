"""Models on disk: safetensors with the configuration as JSON in the header, never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .build import build, config_to_dict, with_basis
from .model import Model

_FORMAT = "scfmlip-model-1"


def save(model: Model, path: str | Path) -> None:
    """
    Write a model's weights and configuration to one safetensors file.

    The file appears whole or not at all: what was there before stays until the new one is complete.

    Args:
        model: From `scfmlip.models.build`.
        path: Ends in ``.safetensors`` by custom.

    Raises:
        TypeError: for something that is not such a model.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save takes a scfmlip model, got {type(model).__name__}: mace-torch models become one by "
            "scfmlip.models.from_mace"
        )
    path = Path(path)
    # tensors that share memory are written once each: safetensors refuses views of one storage
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}
    network: Any = model.backbone.mace
    config = with_basis(model.config, network.use_reduced_cg)
    header = {"format": _FORMAT, "config": json.dumps(config_to_dict(config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        save_file(tensors, part, metadata=header)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """
    The model of a file `save` wrote.

    Args:
        path: The file.
        device: Where its weights go.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); mace's pickles become one by `scfmlip convert`"
        ) from error
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was not written by scfmlip.save (format {header.get('format')!r}, expected {_FORMAT!r})"
        )
    return build(json.loads(header["config"]), tensors).to(device)
