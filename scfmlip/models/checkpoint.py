"""Models on disk: safetensors with the configuration as JSON in the header, never a pickle."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..files import write_whole
from .basis import adopt_basis
from .build import build, config_to_dict, make_config, with_basis
from .card import card_of
from .config import LARGEST, BackboneConfig, ModelConfig
from .model import Model
from .upgrades import FORMAT, check_format, upgrade

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_NETWORK = "backbone.mace."


def save(model: Model, path: str | Path) -> None:
    """
    Write a model's weights and configuration to one safetensors file, with a card for people.

    The card (`scfmlip info`) holds elements, rule, cutoff, units and versions, and what ``model.provenance``
    says of the data it was trained on.

    The file appears whole or not at all: what was there before stays until the new one is complete.

    Args:
        model: From `scfmlip.models.build`.
        path: Ends in ``.safetensors`` by custom.

    Raises:
        TypeError: for something that is not such a model.
        ValueError: for weights that are not finite, or neither float32 nor float64.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save takes a scfmlip model, got {type(model).__name__}: mace-torch models become one by "
            "scfmlip.models.from_mace"
        )
    # tensors that share memory are written once each: safetensors refuses views of one storage
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}
    _check_finite(tensors, "this model")
    # the model may have been moved to another dtype since it was built
    dtype = next(model.parameters()).dtype
    if dtype not in _DTYPES:
        raise ValueError(f"save takes models of float32 or float64, this one is {dtype}")
    network: Any = model.backbone.mace
    config = with_basis(dataclasses.replace(model.config, dtype=_DTYPES[dtype]), network.use_reduced_cg)
    count = sum(p.numel() for p in model.parameters())
    card = card_of(config, count, getattr(model, "provenance", None))
    header = {"format": FORMAT, "config": json.dumps(config_to_dict(config)), "card": json.dumps(card)}
    content = to_bytes(tensors, metadata=header)
    write_whole(Path(path), lambda file: file.write(content))


def load(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """
    The model of a file `save` wrote.

    Nothing in the file is run, and nothing is built before the configuration fits the weights.

    Args:
        path: The file.
        device: Where its weights go.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that holds something else, or whose configuration and weights do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a safetensors file, or damaged ({error}); mace's pickles become one by "
            "`scfmlip convert`"
        ) from error
    check_format(header.get("format"), str(path))
    try:
        config = make_config(json.loads(header["config"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the configuration in {path} cannot be: {error}") from error
    tensors = upgrade(tensors, str(path))
    _check_finite(tensors, str(path))
    _check_fit(config, tensors, path)
    # files of earlier versions may state the dtype that the model was built in, not that of its weights
    dtypes = {_DTYPES[t.dtype] for t in tensors.values() if t.is_floating_point()}
    try:
        config = dataclasses.replace(config, dtype=dtypes.pop()) if len(dtypes) == 1 else config
        model = build(with_basis(config, False))
    except ImportError:
        raise
    except Exception as error:  # mace-torch raises whatever it trips over
        raise ValueError(f"the configuration in {path} cannot be built: {error}") from error
    network: Any = model.backbone.mace
    adopt_basis(network, tensors, _NETWORK)
    state = model.state_dict()
    wrong = [
        n for n in {*state, *tensors} if n not in state or n not in tensors or _differ(state[n], tensors[n])
    ]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"{path}: {len(wrong)} weights are not what its configuration asks for, among them {name}: "
            f"{_describe(tensors.get(name))} instead of {_describe(state.get(name))}"
        )
    model.load_state_dict(tensors)
    model.config = with_basis(config, network.use_reduced_cg)
    model.provenance = _provenance(header)
    return model.to(device)


def _provenance(header: Mapping[str, str]) -> dict[str, Any]:
    """Where a file's model comes from; nothing for what cannot be read, which no number depends on."""
    try:
        return dict(json.loads(header.get("card", "{}")).get("provenance") or {})
    except (ValueError, TypeError, AttributeError):
        return {}


def read_card(path: str | Path) -> dict[str, Any]:
    """
    The card in a file of `save`, without its weights; made of the configuration where the file has none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that `save` did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # safetensors raises its own
        raise ValueError(f"{path} is not a safetensors file, or damaged ({error})") from error
    check_format(header.get("format"), str(path))
    try:
        if "card" in header:
            card = json.loads(header["card"])
            assert isinstance(card, dict)
            return card
        config = make_config(json.loads(header["config"]))
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"the header of {path} cannot be read: {error}") from error
    return card_of(config, None) | {"versions": {}}


def _differ(built: Tensor, given: Tensor) -> bool:
    return built.shape != given.shape or built.is_floating_point() != given.is_floating_point()


def _describe(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that hold NaN or infinity."""
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise ValueError(
            f"{where} has weights that are NaN or infinite, in {len(bad)} tensors, among them {min(bad)}"
        )


def _check_fit(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """
    Refuse a configuration that is not of these weights, before a network of its size is built.

    Raises:
        ValueError: names the option.
    """
    stated = {
        "atomic_numbers": ("elements", config.elements),
        "num_interactions": ("backbone.num_interactions", config.backbone.num_interactions),
        "r_max": ("backbone.r_max", config.backbone.r_max),
    }
    for name, (option, value) in stated.items():
        held = tensors.get(_NETWORK + name)
        wanted = torch.as_tensor(value, dtype=torch.float64)
        if held is None or held.shape != wanted.shape or not torch.allclose(held.double(), wanted, rtol=1e-6):
            found = "no such weight" if held is None else held.tolist()
            raise ValueError(f"{path} is no whole model: its {option} is {value}, its weights say {found}")
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if not dtypes <= set(_DTYPES):
        raise ValueError(
            f"{path} holds weights of {', '.join(map(str, dtypes))}: float32 or float64 are known"
        )
    least, held = (
        _fewest_weights(config.backbone, len(config.elements)),
        sum(t.numel() for t in tensors.values()),
    )
    feedback = getattr(config.rule, "feedback", None)
    if feedback is not None:
        second = {"num_interactions": feedback.num_interactions, "hidden_irreps": feedback.hidden_irreps}
        second = dataclasses.replace(config.backbone, options={}, **second)
        least += _fewest_weights(second, len(config.elements))
    if least > held:
        raise ValueError(
            f"{path} is no whole model: its configuration asks for {least} weights at least, it has {held}"
        )
    # options that are passed on as they are
    for option, number in _sizes({"options": config.backbone.options, **vars(config.rule)}):
        if number > LARGEST:
            raise ValueError(
                f"{path} is no whole model: its {option} is {number}, at most {LARGEST} are known"
            )


def _fewest_weights(backbone: BackboneConfig, n_elements: int) -> int:
    """Weights that a network of these options has at least; not much fewer than it has."""
    hidden = o3.Irreps(backbone.hidden_irreps)
    edge = o3.Irreps(backbone.options.get("edge_irreps") or hidden)
    scalars = hidden.count(o3.Irrep(0, 1))
    widths = [backbone.num_bessel, *backbone.radial_MLP, edge.count(o3.Irrep(0, 1))]
    radial = sum(a * b for a, b in itertools.pairwise(widths))
    mixing = sum(mul**2 for mul, _ in hidden)
    layers = backbone.num_interactions
    # radial networks, linear maps behind products, the embedding of elements, readouts
    return layers * radial + (layers - 1) * mixing + scalars**2 + scalars * (n_elements + layers)


def _sizes(options: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in the mappings among options, with its name."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{where}{key}.")
        elif where:
            several = value if isinstance(value, (list, tuple)) else (value,)
            yield from ((f"{where}{key}", v) for v in several if isinstance(v, int))
