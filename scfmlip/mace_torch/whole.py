"""
Classes of accelerated models that replace mace-torch's.

A model with swapped blocks gets such a class although it computes little itself: when mace-torch's
conversions call it to build another model, it builds an accelerated one, and its repr says how much is
accelerated.
"""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, ClassVar

from mace.modules import extensions
from mace.modules.models import MACE, ScaleShiftMACE

from .edge_graph import with_prepared_edges
from .swapped import SwappedModel

# None before mace-torch 0.3.16
PolarMACE: Any = getattr(extensions, "PolarMACE", None)
MACELES: Any = extensions.MACELES


class FastMACE(SwappedModel, MACE):
    """`MACE` with accelerated blocks."""

    _scfmlip_original = MACE
    forward = with_prepared_edges(MACE.forward)


class FastScaleShiftMACE(SwappedModel, ScaleShiftMACE):
    """`ScaleShiftMACE` with accelerated blocks."""

    _scfmlip_original = ScaleShiftMACE
    forward = with_prepared_edges(ScaleShiftMACE.forward)


class FastBackboneMACELES(SwappedModel, MACELES):
    """`MACELES` with an accelerated backbone and the latent sum of `les`."""

    _scfmlip_original = MACELES
    _scfmlip_options: ClassVar[dict[str, Any]] = {"electrostatics": False}


# by original class; the electrostatics, if any, is mace-torch's
WHOLE_MODELS: dict[type, type] = {
    cls._scfmlip_original: cls for cls in (FastMACE, FastScaleShiftMACE, FastBackboneMACELES)
}

if PolarMACE is not None:

    class FastBackbonePolarMACE(SwappedModel, PolarMACE):
        """`PolarMACE` with an accelerated backbone and mace-torch's electrostatics."""

        _scfmlip_original = PolarMACE
        _scfmlip_options: ClassVar[dict[str, Any]] = {"electrostatics": False}

    WHOLE_MODELS[PolarMACE] = FastBackbonePolarMACE
