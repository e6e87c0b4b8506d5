"""
Classes of whole accelerated models, in the place of mace-torch's.

A model whose blocks are swapped gets one too, though it computes nothing: called by mace-torch's conversions
to build the next model it builds an accelerated one, and its repr says how much is accelerated.
"""

# mace-torch's modules have no types: torch.nn.Module says Tensor | Module for every attribute
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, ClassVar

from mace.modules import extensions
from mace.modules.models import MACE, ScaleShiftMACE

from .swapped import SwappedModel

# None before mace-torch 0.3.16
PolarMACE: Any = getattr(extensions, "PolarMACE", None)
MACELES: Any = extensions.MACELES


class FastMACE(SwappedModel, MACE):
    """`MACE` with accelerated blocks."""

    _scfmlip_original = MACE


class FastScaleShiftMACE(SwappedModel, ScaleShiftMACE):
    """`ScaleShiftMACE` with accelerated blocks."""

    _scfmlip_original = ScaleShiftMACE


class FastBackboneMACELES(SwappedModel, MACELES):
    """`MACELES` with an accelerated backbone and the latent sum of `les`."""

    _scfmlip_original = MACELES
    _scfmlip_options: ClassVar[dict[str, Any]] = {"electrostatics": False}


# by original class: whose electrostatics, if any, are mace-torch's
WHOLE_MODELS: dict[type, type] = {
    cls._scfmlip_original: cls for cls in (FastMACE, FastScaleShiftMACE, FastBackboneMACELES)
}

if PolarMACE is not None:

    class FastBackbonePolarMACE(SwappedModel, PolarMACE):
        """`PolarMACE` with an accelerated backbone and electrostatics of its own."""

        _scfmlip_original = PolarMACE
        _scfmlip_options: ClassVar[dict[str, Any]] = {"electrostatics": False}

    WHOLE_MODELS[PolarMACE] = FastBackbonePolarMACE
