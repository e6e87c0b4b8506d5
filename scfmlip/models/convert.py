"""Convert mace-torch's models to models of the design space, and back."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace import modules
from mace.tools.scripts_utils import extract_config_mace_model

from ..mace_torch import restore
from ..mace_torch.building import default_dtype
from ..mace_torch.latent import LesOptions, les_options
from ..mace_torch.whole import MACELES, PolarMACE
from .backbone import Backbone, mace_arguments
from .basis import OPTION, adopt_basis
from .card import CARD
from .config import BackboneConfig, DensityConfig, ModelConfig, energies_per_head
from .model import Model
from .rules.latent import Latent, LatentConfig, LesReadout
from .rules.recursion import Recursion, RecursionConfig
from .rules.short_range import ShortRange, ShortRangeConfig

# arguments of mace-torch's constructors that are passed on if they differ from the default
_OPTIONS: dict[str, Any] = {
    "radial_type": "bessel",
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_embedding_readout": False,
    "use_edge_irreps_first": False,
    "apply_cutoff": True,
    "edge_irreps": None,
    "embedding_specs": None,
}


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in np.atleast_1d(np.asarray(value)))


def _number_or_several(value: Any) -> float | tuple[float, ...]:
    return _numbers(value) if np.ndim(value) else float(value)


def _plain(value: Any) -> Any:
    """Convert to JSON types."""
    if isinstance(value, o3.Irreps):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def from_mace(model: torch.nn.Module) -> Model:
    """
    Convert a mace-torch model to a scfmlip model with the same weights and results.

    Args:
        model: ``MACE`` or ``ScaleShiftMACE`` (the rule "short_range"), ``PolarMACE`` ("recursion") or
            ``MACELES`` ("latent" with compat="les", which no longer needs the package `les`), accelerated or
            not. It is copied.

    Returns:
        The model. It can be saved, trained further, and used wherever a scfmlip model can.

    Raises:
        TypeError: for another class.
        ValueError: for a model that mace-torch's constructor cannot rebuild from a plain configuration, or a
            MACELES with more than charges; names the option.

    Example:
        >>> from scfmlip.models import build, from_mace, to_mace
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"elements": ["H", "O"], "rule": "short_range", "backbone": backbone}
        >>> network = to_mace(build(values))  # or torch.load of a file that mace_run_train wrote
        >>> from_mace(network).config.elements
        (1, 8)
    """
    original = restore(model)
    polar, latent = type(original) is PolarMACE, type(original) is MACELES
    if type(original) not in (modules.MACE, modules.ScaleShiftMACE, PolarMACE, MACELES):
        known = "MACE, ScaleShiftMACE, PolarMACE and MACELES"
        raise TypeError(f"from_mace takes {known}, got {type(original).__name__}")
    rule: Any = _latent_rule(original) if latent else ShortRangeConfig()
    network = copy.deepcopy(_without_les(original) if latent else original)
    if type(network) is modules.MACE:  # the same energy as a ScaleShiftMACE with scale 1 and shift 0
        network.__class__ = modules.ScaleShiftMACE
        network.scale_shift = modules.ScaleShiftBlock(scale=1.0, shift=0.0).to(next(network.parameters()))
    found = extract_config_mace_model(network)
    heads = tuple(found["heads"])
    if len(heads) == 1:  # mace_run_train has [1, n_elements]
        block: Any = network.atomic_energies_fn
        block.atomic_energies = block.atomic_energies.reshape(-1)
    if found["gate"] not in (None, torch.nn.functional.silu):
        raise ValueError(f"this model's readout has the gate {found['gate']}: only silu is supported")
    density = DensityConfig()
    if latent:
        density = DensityConfig(l_max=0, sigma=rule.sigma / 2**0.5)
    elif polar:
        density, rule = _polar_options(found)
    parameter = next(network.parameters())
    config = ModelConfig(
        elements=tuple(int(z) for z in found["atomic_numbers"]),
        atomic_energies=energies_per_head(
            np.atleast_2d(found["atomic_energies"]).tolist(), [int(z) for z in found["atomic_numbers"]], heads
        ),
        rule=rule,
        backbone=_backbone_options(found, network),
        density=density,
        constraint="charge_spin" if polar else "none",
        dtype="float64" if parameter.dtype == torch.float64 else "float32",
    )
    readouts = original.les_readouts.state_dict() if latent else {}  # type: ignore[union-attr]
    rebuilt = _rebuild(
        config,
        {
            **{f"backbone.mace.{name}": value for name, value in network.state_dict().items()},
            **{f"rule.readout.layers.{name}": value for name, value in readouts.items()},
        },
        type(original).__name__,
    )
    network.use_reduced_cg = rebuilt.config.backbone.options[OPTION]
    rebuilt.backbone = Backbone(network)
    rebuilt.provenance = _origin(original)
    return rebuilt.to(parameter.device)


def _origin(original: torch.nn.Module) -> dict[str, Any]:
    """What the card says of a converted model: where it comes from, and what its own card said."""
    origin: dict[str, Any] = {"source": f"mace-torch's {type(original).__name__}"}
    try:
        return dict(json.loads(vars(original)[CARD])["provenance"]) or origin
    except (KeyError, ValueError, TypeError):
        return origin


def _backbone_options(found: dict[str, Any], network: Any) -> BackboneConfig:
    """The backbone's configuration, from the options that mace-torch extracts from a network."""
    hidden = str(found["hidden_irreps"])
    distance = found["distance_transform"]
    return BackboneConfig(
        r_max=float(found["r_max"]),
        num_interactions=int(found["num_interactions"]),
        hidden_irreps=hidden,
        MLP_irreps=str(found["MLP_irreps"]),
        max_ell=int(found["max_ell"]),
        correlation=int(found["correlation"]),
        num_bessel=int(found["num_bessel"]),
        num_polynomial_cutoff=int(found["num_polynomial_cutoff"]),
        radial_MLP=tuple(int(n) for n in found["radial_MLP"]),
        interaction=found["interaction_cls"].__name__,
        interaction_first=found["interaction_cls_first"].__name__,
        avg_num_neighbors=float(found["avg_num_neighbors"]),
        scale=_number_or_several(found["atomic_inter_scale"]),
        shift=_number_or_several(found["atomic_inter_shift"]),
        keep_last_layer_irreps=str(network.products[-1].linear.irreps_out) == hidden,
        pair_repulsion=bool(found["pair_repulsion"]),
        distance_transform=distance if distance in ("Agnesi", "Soft") else "None",
        heads=tuple(found["heads"]),
        options={
            name: _plain(found[name])
            for name, usual in _OPTIONS.items()
            if name in found and found[name] != usual
        },
    )


def _polar_options(found: dict[str, Any]) -> tuple[DensityConfig, RecursionConfig]:
    """Density and rule options of a PolarMACE."""
    density = DensityConfig(
        l_max=int(found["atomic_multipoles_max_l"]),
        sigma=float(found["atomic_multipoles_smearing_width"]),
        self_interaction=bool(found["include_electrostatic_self_interaction"]),
        kspace_cutoff_factor=float(found["kspace_cutoff_factor"]),
    )
    rule = RecursionConfig(
        num_recursion_steps=int(found["num_recursion_steps"]),
        field_feature_max_l=int(found["field_feature_max_l"]),
        field_feature_widths=_numbers(found["field_feature_widths"]),
        field_feature_norms=_numbers(found["field_feature_norms"]),
        field_norm_factor=float(found["field_norm_factor"]),
        field_si=bool(found["field_si"]),
        add_local_electron_energy=bool(found["add_local_electron_energy"]),
        fixedpoint_update_config=_plain(found["fixedpoint_update_config"]),
        field_readout_config=_plain(found["field_readout_config"]),
    )
    return density, rule


def _latent_rule(model: torch.nn.Module) -> LatentConfig:
    """Rule options for the part that MACELES adds to its network."""
    les: Any = model.les
    # MACELES versions with dipoles, quadrupoles or induced charges have these switches
    known = {*_OPTIONS, OPTION}
    extras = [k for k, v in vars(model).items() if k.startswith("use_") and k not in known and v]
    if extras:
        raise ValueError(f"this MACELES has {', '.join(extras)}: from_mace takes models with charges only")
    dropped = [
        name
        for name, given, usual in (
            ("compute_bec", getattr(model, "compute_bec", False), False),
            ("epsilon_factor", getattr(les, "epsilon_factor", 1.0), 1.0),
            ("remove_mean", getattr(les, "remove_mean", True), True),
        )
        if given != usual
    ]
    if dropped:
        warnings.warn(
            f"{', '.join(dropped)} of this MACELES only change the Born charges that `les` reports, and are "
            "dropped; the converted model computes Born charges with compute_response",
            stacklevel=3,
        )
    return LatentConfig(compat="les", **les_options(les))


def _without_les(model: torch.nn.Module) -> torch.nn.Module:
    """The short-range part of a MACELES, sharing its weights."""
    network = copy.copy(model)
    network._modules = {k: v for k, v in model._modules.items() if k not in ("les", "les_readouts")}
    for name in ("compute_bec", "bec_output_index", "readout_input_dims"):
        vars(network).pop(name, None)
    network.__class__ = modules.ScaleShiftMACE
    return network


def _rebuild(config: ModelConfig, given: dict[str, torch.Tensor], name: str) -> Model:
    """Build the model from configuration and weights, to make sure that its file can be loaded."""
    from .build import build, with_basis

    try:
        model = build(with_basis(config, False))
    except Exception as error:
        raise ValueError(f"this {name} cannot be rebuilt from its configuration ({error})") from error
    network: Any = model.backbone.mace
    adopt_basis(network, given, "backbone.mace.")
    model.config = with_basis(config, network.use_reduced_cg)
    state = model.state_dict()
    wrong = [
        key
        for key in {*state, *given}
        if key not in state or key not in given or state[key].shape != given[key].shape
    ]
    if wrong:
        raise ValueError(
            f"this {name} was built with options that its configuration does not contain "
            f"(cuEquivariance layout?): {len(wrong)} weights differ in name or shape, among them "
            f"{', '.join(sorted(wrong)[:3])}. Convert it to e3nn layout with mace's own tools first"
        )
    model.load_state_dict(given)
    return model


def to_mace(model: Model) -> torch.nn.Module:
    """
    Convert to a model of mace-torch's own classes with the same results; a copy.

    Its attribute ``scfmlip_card`` holds the model's card, which `scfmlip info` prints and `from_mace` reads.

    Args:
        model: Model with the rule "short_range", "recursion", or "latent" with compat="les".

    Raises:
        TypeError: for other rules, for which mace-torch has no class.
        ImportError: for the latent rule if the package `les`, which MACELES needs, is missing.

    Example:
        >>> from scfmlip.models import build, to_mace
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = build({"elements": ["H", "O"], "rule": "short_range", "backbone": backbone})
        >>> type(to_mace(model)).__name__
        'ScaleShiftMACE'
    """
    rule = model.rule
    network: Any = copy.deepcopy(restore(model.backbone.mace))  # type: ignore[arg-type]
    if isinstance(rule, Latent) and isinstance(rule.readout, LesReadout):
        network = _with_les(network, model.config, rule.les_options(), rule.readout)
    elif not isinstance(rule, Recursion | ShortRange):
        hint = "; only compat='les' is MACELES" if isinstance(rule, Latent) else ""
        raise TypeError(
            f"mace-torch has no model of the rule {type(rule).__name__}: save it with scfmlip.save{hint}"
        )
    # text, which mace-torch's tools carry along
    setattr(network, CARD, json.dumps(model.card))
    return network


def _with_les(
    network: torch.nn.Module, config: ModelConfig, options: LesOptions, readout: LesReadout
) -> torch.nn.Module:
    """Build a MACELES from a network and its latent readouts."""
    try:
        import les  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "mace-torch's MACELES needs the package `les`, which is not installed: get it from "
            "https://github.com/ChengUCB/les"
        ) from error
    weight = next(network.parameters())
    with default_dtype(weight.dtype), torch.random.fork_rng(devices=[]):
        made = MACELES(
            les_arguments={**options, "use_atomwise": False},
            **{**mace_arguments(config.backbone, config.elements, config.atomic_energies), OPTION: False},
        )
    latent: Any = made.les  # the constructor does not take this argument
    getattr(latent, "ewald", latent).norm_factor = options["norm_factor"]
    state = dict(network.state_dict())
    state |= {f"les_readouts.{name}": value for name, value in readout.layers.state_dict().items()}
    adopt_basis(made, state)
    made.load_state_dict(state)
    return made.to(weight.device).train(network.training)
