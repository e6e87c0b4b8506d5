"""mace-torch's models as points of the design space, and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from e3nn import o3
from mace import modules
from mace.modules.extensions import MACELES, PolarMACE
from mace.tools.scripts_utils import extract_config_mace_model

from ..interfaces.mace import restore
from .backbone import Backbone
from .config import BackboneConfig, DensityConfig, ModelConfig
from .model import Model
from .rules.recursion import Recursion, RecursionConfig
from .rules.short_range import ShortRangeConfig

# arguments of mace-torch's constructors that are passed on where they differ from the default
_OPTIONS: dict[str, Any] = {
    "radial_type": "bessel",
    "use_reduced_cg": True,
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
    """JSON's types only."""
    if isinstance(value, o3.Irreps):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def from_mace(model: torch.nn.Module) -> Model:
    """
    A mace-torch model as one of ours, with its weights and numbers.

    Args:
        model: ``MACE`` or ``ScaleShiftMACE`` (the rule "short_range") or ``PolarMACE`` ("recursion"),
            accelerated or not. It is copied.

    Returns:
        The model: it can be saved, trained further and run by everything that takes ours.

    Raises:
        TypeError: for another class.
        ValueError: for a model that mace-torch's constructor cannot make from a plain configuration.
    """
    original = restore(model)
    polar = type(original) is PolarMACE
    if type(original) not in (modules.MACE, modules.ScaleShiftMACE, PolarMACE):
        known = "MACE, ScaleShiftMACE and PolarMACE"
        hint = (
            ": its latent charges follow `les`, whose constants differ from ours. Run it with "
            "scfmlip.accelerate"
            if isinstance(original, MACELES)
            else ""
        )
        raise TypeError(f"from_mace takes {known}, got {type(original).__name__}{hint}")
    network = copy.deepcopy(original)
    if type(network) is modules.MACE:  # the same energy, with a scale of 1 and a shift of 0
        network.__class__ = modules.ScaleShiftMACE
        network.scale_shift = modules.ScaleShiftBlock(scale=1.0, shift=0.0).to(next(network.parameters()))
    found = extract_config_mace_model(network)
    layers: Any = network.products
    parameter = next(network.parameters())
    hidden = str(found["hidden_irreps"])
    backbone = BackboneConfig(
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
        keep_last_layer_irreps=str(layers[-1].linear.irreps_out) == hidden,
        pair_repulsion=bool(found["pair_repulsion"]),
        distance_transform=found["distance_transform"]
        if found["distance_transform"] in ("Agnesi", "Soft")
        else "None",
        heads=tuple(found["heads"]),
        options={
            name: _plain(found[name])
            for name, usual in _OPTIONS.items()
            if name in found and found[name] != usual
        },
    )
    rule: Any = ShortRangeConfig()
    density = DensityConfig()
    if polar:
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
    config = ModelConfig(
        elements=tuple(int(z) for z in found["atomic_numbers"]),
        atomic_energies=tuple(float(e) for e in np.atleast_2d(found["atomic_energies"])[0]),
        rule=rule,
        backbone=backbone,
        density=density,
        constraint="charge_spin" if polar else "none",
        dtype="float64" if parameter.dtype == torch.float64 else "float32",
    )
    _check_rebuilds(config, network)
    return Model(config, Backbone(network)).to(parameter.device)


def _check_rebuilds(config: ModelConfig, network: torch.nn.Module) -> None:
    """The configuration has to make a network that takes the weights, or a saved file could not be read."""
    from .build import build

    try:
        state = build(config).backbone.mace.state_dict()  # type: ignore[union-attr]
    except Exception as error:
        raise ValueError(
            f"this {type(network).__name__} cannot be made again from its configuration ({error})"
        ) from error
    given = network.state_dict()
    wrong = [
        name
        for name in {*state, *given}
        if name not in state or name not in given or state[name].shape != given[name].shape
    ]
    if wrong:
        raise ValueError(
            f"this {type(network).__name__} was built with options that its configuration does not tell "
            f"(cuEquivariance layout?): {len(wrong)} weights differ in name or shape, among them "
            f"{', '.join(sorted(wrong)[:3])}. Convert it to e3nn layout with mace's own tools first"
        )


def to_mace(model: Model) -> torch.nn.Module:
    """
    The mace-torch model that gives the same numbers, of mace-torch's own classes; a copy.

    Args:
        model: With the rule "short_range" or "recursion".

    Raises:
        TypeError: for other rules, which mace-torch has no class for.
    """
    if not isinstance(model.rule, Recursion) and not isinstance(model.config.rule, ShortRangeConfig):
        raise TypeError(
            f"mace-torch has no model of the rule {type(model.rule).__name__}: save it with scfmlip.save"
        )
    return copy.deepcopy(restore(model.backbone.mace))  # type: ignore[arg-type]
