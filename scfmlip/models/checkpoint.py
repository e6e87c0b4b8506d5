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

    The write is atomic: an existing file is replaced only when the new one is complete.

    Args:
        model: From `scfmlip.models.build`.
        path: The file, usually ``*.safetensors``.

    Raises:
        TypeError: for something that is not such a model.
        ValueError: for weights that are not finite, or neither float32 nor float64.

    Example:
        >>> import pathlib, tempfile, scfmlip
        >>> from scfmlip.models import build
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = build({"elements": ["H", "O"], "rule": "short_range", "backbone": backbone})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scfmlip.save(model, pathlib.Path(folder, "water.safetensors"))
        ...     print([path.name for path in pathlib.Path(folder).iterdir()])
        ['water.safetensors']
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save takes a scfmlip model, got {type(model).__name__}: convert mace-torch models with "
            "scfmlip.models.from_mace"
        )
    # safetensors refuses views of one storage, so copy tensors that share memory
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
    Load a model from a file that `save` wrote.

    No code in the file is executed, and no network is built before the configuration matches the weights.

    Args:
        path: The file.
        device: Device of the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file with other content, or whose configuration and weights do not match.

    Example:
        >>> import scfmlip
        >>> from scfmlip.data import path
        >>> model = scfmlip.load(path("models/al_water-equilibrated.safetensors"))  # ships with the package
        >>> model.config.elements, model.required_info
        ((1, 8, 13), ('charge',))
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
            f"{path} is not a safetensors file, or damaged ({error}); convert mace's pickles with "
            "`scfmlip convert`"
        ) from error
    check_format(header.get("format"), str(path))
    try:
        config = make_config(json.loads(header["config"]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the configuration in {path} is invalid: {error}") from error
    tensors = upgrade(tensors, str(path))
    _check_finite(tensors, str(path))
    _check_fit(config, tensors, path)
    # files of earlier versions may give the dtype of construction instead of that of the weights
    dtypes = {_DTYPES[t.dtype] for t in tensors.values() if t.is_floating_point()}
    try:
        config = dataclasses.replace(config, dtype=dtypes.pop()) if len(dtypes) == 1 else config
        model = build(with_basis(config, False))
    except ImportError:
        raise
    except Exception as error:  # mace-torch may raise anything
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
            f"{path}: {len(wrong)} weights do not match its configuration, among them {name}: "
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
        raise ValueError(f"{where} has NaN or infinite weights in {len(bad)} tensors, among them {min(bad)}")


def _check_fit(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """
    Refuse a configuration that does not match the weights, before a network of its size is built.

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
            text = f"its {option} is {value}, its weights say {found}"
            raise ValueError(f"{path} is not a complete model: {text}")
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if not dtypes <= set(_DTYPES):
        raise ValueError(
            f"{path} holds weights of {', '.join(map(str, dtypes))}: only float32 and float64 are supported"
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
            f"{path} is not a complete model: its configuration needs at least {least} weights, it has {held}"
        )
    # options that are passed on unchanged
    for option, number in _sizes({"options": config.backbone.options, **vars(config.rule)}):
        if number > LARGEST:
            raise ValueError(
                f"{path} is not a complete model: its {option} is {number}, the limit is {LARGEST}"
            )


def _fewest_weights(backbone: BackboneConfig, n_elements: int) -> int:
    """A lower bound of the number of weights of a network with these options."""
    hidden = o3.Irreps(backbone.hidden_irreps)
    edge = o3.Irreps(backbone.options.get("edge_irreps") or hidden)
    scalars = hidden.count(o3.Irrep(0, 1))
    widths = [backbone.num_bessel, *backbone.radial_MLP, edge.count(o3.Irrep(0, 1))]
    radial = sum(a * b for a, b in itertools.pairwise(widths))
    mixing = sum(mul**2 for mul, _ in hidden)
    layers = backbone.num_interactions
    # radial networks, linear maps after products, element embedding, readouts
    return layers * radial + (layers - 1) * mixing + scalars**2 + scalars * (n_elements + layers)


def _sizes(options: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in nested options, with its name."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, f"{where}{key}.")
        elif where:
            several = value if isinstance(value, (list, tuple)) else (value,)
            yield from ((f"{where}{key}", v) for v in several if isinstance(v, int))
