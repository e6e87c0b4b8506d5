"""Build models from configurations."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..mace_torch.building import default_dtype
from .basis import OPTION, check_basis
from .config import BackboneConfig, DensityConfig, ModelConfig, atomic_number, energies_per_head, from_dict
from .model import Model
from .rules import name_of, rule_config


def make_config(values: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """
    Make a typed configuration from a plain mapping (YAML, JSON).

    Args:
        values: ``elements`` (symbols or numbers), ``atomic_energies`` (eV by element, or a list in the order
            of ``elements``; per head if heads differ; zero if missing), ``rule`` (a name, or a mapping with
            ``name`` and its options), and optionally ``backbone``, ``density``, ``constraint``, ``seed``,
            ``dtype``.

    Raises:
        ValueError, TypeError: name the option that is unknown or wrong.

    Example:
        >>> from scfmlip.models import make_config
        >>> config = make_config({"elements": ["H", "O"], "rule": {"name": "latent", "channels": 4}})
        >>> config.elements, config.rule.channels, config.backbone.r_max
        ((1, 8), 4, 5.0)
    """
    if isinstance(values, ModelConfig):
        return values
    if not isinstance(values, Mapping):
        raise TypeError(f"a model's configuration must be a mapping, got {type(values).__name__}")
    values = dict(values)
    for name in ("elements", "rule"):
        if values.get(name) is None:
            raise ValueError(f"the model's configuration lacks {name!r}")
    for name in ("elements", "atomic_energies"):
        given = values.get(name)
        if isinstance(given, str) or not (given is None or isinstance(given, Iterable)):
            raise TypeError(f"{name} must be a list, got {given!r}")
    elements = [atomic_number(e) for e in values["elements"]]
    if len(set(elements)) != len(elements) or not elements:
        raise ValueError(f"elements must be different and at least one, got {values['elements']}")
    values["rule"], values["elements"] = rule_config(values["rule"]), elements
    values["backbone"] = from_dict(BackboneConfig, values.get("backbone", {}), "backbone")
    heads = values["backbone"].heads
    values["atomic_energies"] = energies_per_head(values.get("atomic_energies"), elements, heads)
    values["density"] = from_dict(DensityConfig, values.get("density", {}), "density")
    return from_dict(ModelConfig, values, "model")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """
    The plain mapping (JSON) that `make_config` turns into the same configuration.

    Example:
        >>> from scfmlip.models import config_to_dict, make_config
        >>> config = make_config({"elements": ["H", "O"], "rule": "local"})
        >>> values = config_to_dict(config)
        >>> values["rule"], make_config(values) == config
        ({'name': 'local', 'hidden': 16}, True)
    """
    plain = dataclasses.asdict(config)
    plain["rule"] = {"name": name_of(config.rule), **dataclasses.asdict(config.rule)}
    return plain


def build(
    config: Mapping[str, Any] | ModelConfig, weights: Mapping[str, torch.Tensor] | None = None
) -> Model:
    """
    Build a model of the design space, with random or given weights.

    The same configuration gives the same model whatever is installed. The contraction basis,
    ``backbone.options.use_reduced_cg``, is that of the weights if there are any, and otherwise False unless
    the configuration sets it.

    Args:
        config: See `make_config`.
        weights: A state dict to load.

    Returns:
        The model on the CPU; its backbone is a mace-torch network that runs accelerated.

    Raises:
        ValueError, TypeError: for a configuration that cannot be built; the message says why.
        RuntimeError: for weights of another model.

    Example:
        >>> import scfmlip
        >>> backbone = {"hidden_irreps": "8x0e+8x1o", "max_ell": 1, "correlation": 2}
        >>> config = {"elements": ["H", "O"], "rule": "equilibrated", "constraint": "charge"}
        >>> model = scfmlip.models.build({**config, "backbone": backbone})
        >>> model.required_info
        ('charge',)
    """
    typed = make_config(config)
    if weights is not None:  # start with the basis that is always available; theirs is adopted on loading
        typed = with_basis(typed, False)
    check_basis(typed.backbone.options)
    dtype = {"float32": torch.float32, "float64": torch.float64}[typed.dtype]
    with default_dtype(dtype), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # warnings of e3nn's and mace's scripted modules do not concern the user
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
        torch.manual_seed(typed.seed)
        model = Model(with_basis(typed, bool(typed.backbone.options.get(OPTION))))
    if weights is not None:
        model.load_state_dict(weights)
        network: Any = model.backbone.mace
        model.config = with_basis(typed, network.use_reduced_cg)
    return model


def with_basis(config: ModelConfig, reduced: bool) -> ModelConfig:
    """The configuration with its contraction basis set."""
    backbone = config.backbone
    options = {**backbone.options, OPTION: reduced}
    return dataclasses.replace(config, backbone=dataclasses.replace(backbone, options=options))
