"""
The basis of a network's symmetric contraction, and how a network adopts the basis of a file.

mace-torch builds a contraction in one of two bases: the full one of its papers, whose elements are not
independent, or the smaller one of cuequivariance, if that package is installed and ``use_reduced_cg`` is on.
Weights are specific to the basis. The basis coefficients are buffers, so a file holds both, and a network
adopts the basis of the weights that it loads, whatever is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mace.modules.symmetric_contraction import Contraction
from mace.modules.wrapper_ops import CUET_AVAILABLE
from torch import Tensor

from ..mace_torch.contraction import FastSymmetricContraction

# mace-torch's option
OPTION = "use_reduced_cg"


def check_basis(options: Mapping[str, Any]) -> None:
    """
    Refuse to build a network in the reduced basis if cuequivariance is not installed.

    Raises:
        ValueError: if mace-torch would silently use the full basis.
    """
    if options.get(OPTION) and not CUET_AVAILABLE:
        raise ValueError(
            f"backbone.options.{OPTION} needs the contraction basis of cuequivariance, which is not "
            "installed: pip install 'scfmlip[cueq]', or leave the option out to use mace's own basis (files "
            "in either basis load without the package)"
        )


def _contractions(network: torch.nn.Module) -> dict[str, Any]:
    return {name: m for name, m in network.named_modules() if isinstance(m, Contraction)}


def adopt_basis(network: Any, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """
    Give a network's contractions the shapes and the basis of a state dict.

    Parameters stay the same objects, for optimisers that hold them. Other mismatches are left for
    `load_state_dict` to refuse.

    Args:
        network: A mace-torch network, plain or accelerated.
        state: Weights and buffers that will be loaded next.
        prefix: Prefix of the network's names in ``state``.
    """
    another = False
    for name, contraction in _contractions(network).items():
        start = f"{prefix}{name}." if name else prefix
        for key, mine in contraction.named_buffers():
            given = state.get(start + key)
            if not key.startswith("U_matrix_") or given is None or mine.shape[:-1] != given.shape[:-1]:
                continue
            given = given.to(mine)
            # differs by more than rounding to float32
            if mine.shape != given.shape or float((mine - given).abs().max()) > 1e-5:
                another = True
                setattr(contraction, key, given.clone())
        for key, weights in contraction.named_parameters():
            given = state.get(start + key)
            if given is not None and weights.shape[::2] == given.shape[::2] and weights.shape != given.shape:
                weights.data = weights.new_zeros(given.shape)
    if another:
        network.use_reduced_cg = not network.use_reduced_cg
        for module in network.modules():
            if isinstance(module, FastSymmetricContraction):
                module.follow_coefficients()
