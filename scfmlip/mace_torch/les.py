"""MACELES on our Coulomb operator; see `latent` for the energy."""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import torch
from les import Les
from mace.modules.extensions import MACELES
from mace.modules.utils import get_symmetric_displacement
from torch import Tensor

from .graphs import stress_of
from .latent import LesOptions, latent_energy, les_options
from .swapped import Swapped, SwappedModel, Swaps, not_compiled, warn_fallback
from .whole import WHOLE_MODELS

# batch and strain of the call in progress; the batch's positions follow the strain
_STRAIN: ContextVar[tuple[dict[str, Tensor], Tensor] | None] = ContextVar("strain", default=None)

# whether mace-torch reads the strain from a batch
_HANDED_OVER = "displacement" in inspect.signature(get_symmetric_displacement).parameters

# arguments of a call that request more than the energy of charges
_BEYOND = ("e_ext", "latent_dipoles", "latent_quads", "latent_kappas", "latent_alphas")


def _options(les: torch.nn.Module) -> LesOptions | str:
    """The options of the plain charge model, or the reason why another model keeps its own code."""
    try:
        return les_options(les)
    except ValueError as error:
        return str(error)


class FastLes(Swapped, Les):
    """`les.Les` with our energy of latent charges; everything else is the original."""

    _scfmlip_original = Les

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor | None]:
        """Arguments and results of ``les.Les.forward``."""
        bound = inspect.signature(Les.forward).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given.pop("self")
        if given["latent_charges"] is None or not given["compute_energy"]:
            return super().forward(*args, **kwargs)
        strained = _strained(given)
        options = _options(self)
        beyond = [name for name in (*_BEYOND, "compute_field") if given.get(name) not in (None, False)]
        if isinstance(options, str) or beyond:
            reason = options if isinstance(options, str) else f"it was called with {', '.join(beyond)}"
            warn_fallback(self, reason)
            return super().forward(**strained)
        out = super().forward(**{**given, "compute_energy": False})
        positions, cell, batch = strained["positions"], strained["cell"], given["batch"]
        if batch is None:
            batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        charges = given["latent_charges"]
        out["E_lr"] = latent_energy(charges, positions, cell.reshape(-1, 3, 3), batch, **options)
        return out


def _strained(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `les` with strained positions and cell; mace-torch passes unstrained ones."""
    strain = _STRAIN.get()
    if strain is None or given["positions"] is strain[0]["positions"]:
        return given
    batch, displacement = strain
    cell = given["cell"] + given["cell"] @ (0.5 * (displacement + displacement.mT))
    return {**given, "positions": batch["positions"], "cell": cell}


class FastMACELES(SwappedModel, MACELES):
    """`MACELES`: same call, outputs and state dict; its stress includes the latent Ewald sum."""

    _scfmlip_original = MACELES

    @not_compiled("MACELES")
    def forward(self, data: dict[str, Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor | None]:
        """Arguments and results of ``MACELES.forward``."""
        data = dict(data)  # mace's forward writes strained positions into it
        given = inspect.signature(MACELES.forward).bind(self, data, *args, **kwargs).arguments
        strain = None
        if given.get("compute_virials") or given.get("compute_stress"):
            n_systems = data["ptr"].numel() - 1
            displacement = data["positions"].new_zeros((n_systems, 3, 3)).requires_grad_()
            data["displacement"] = displacement
            strain = data, displacement
        token = _STRAIN.set(strain)
        try:
            out = super().forward(data, *args, **kwargs)
        finally:
            _STRAIN.reset(token)
        if given.get("compute_stress") and "volume_share" in data:
            out["stress"] = stress_of(out["virials"], data)
        return out


def find_les_swaps(model: Any) -> tuple[Swaps, dict[int, str]]:
    """Modules to replace in a MACELES besides its backbone, and modules that stay, as in `find_swaps`."""
    swaps: Swaps = {}
    left: dict[int, str] = {}
    whole, les = isinstance(model, FastMACELES), model.les
    if type(les) is Les:
        options = _options(les)
        swaps[id(les)] = (FastLes, {"_scfmlip_told": options} if isinstance(options, str) else {})
        if isinstance(options, str):
            left[id(les)] = options
    elif not isinstance(les, FastLes):
        left[id(les)] = "not the class Les of the package les; the stress lacks the latent sum"
    if not _HANDED_OVER:
        left[id(model)] = "mace-torch before 0.3.16 does not pass the strain; the stress lacks the latent sum"
    if not whole and type(model) in (MACELES, WHOLE_MODELS[MACELES]):
        swaps[id(model)] = (FastMACELES, {})
    elif not whole:
        left[id(model)] = "a subclass of MACELES with its own forward; the stress lacks the latent sum"
    return swaps, left
