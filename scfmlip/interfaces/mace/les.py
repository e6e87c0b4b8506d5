"""MACELES on our Coulomb operator; `latent` says how its energy is ours."""

# mace-torch's modules have no types: torch.nn.Module says Tensor | Module for every attribute
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import inspect
from typing import Any

import torch
from les import Les
from mace.modules.extensions import MACELES
from torch import Tensor

from .graphs import stress_of
from .latent import LesOptions, latent_energy, les_options
from .swapped import Swapped


def _options(les: torch.nn.Module) -> LesOptions | None:
    """None for more than the plain charge model, which keeps its own code."""
    try:
        return les_options(les)
    except ValueError:
        return None


class FastLes(Swapped, Les):
    """`les.Les` whose energy of latent charges is ours; everything else is the original."""

    _scfmlip_original = Les

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor | None]:
        """Arguments and results of ``les.Les.forward``."""
        bound = inspect.signature(Les.forward).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given.pop("self")
        beyond = ("e_ext", "latent_dipoles", "latent_quads", "latent_kappas", "latent_alphas")
        charges, options = given["latent_charges"], _options(self)
        if (
            charges is None
            or not given["compute_energy"]
            or given.get("compute_field", False)
            or any(given.get(name) is not None for name in beyond)
            or options is None
        ):
            return super().forward(*args, **kwargs)
        out = super().forward(**{**given, "compute_energy": False})
        positions, cell, batch = given["positions"], given["cell"], given["batch"]
        strain = getattr(self, "_scfmlip_strain", None)
        if strain is not None:
            positions, displacement = strain()
            cell = cell + cell @ (0.5 * (displacement + displacement.mT))
        if batch is None:
            batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        out["E_lr"] = latent_energy(charges, positions, cell.reshape(-1, 3, 3), batch, **options)
        return out


class FastMACELES(Swapped, MACELES):
    """`MACELES`: same call, outputs and state dict; its stress includes the latent Ewald sum."""

    _scfmlip_original = MACELES

    def forward(self, data: dict[str, Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor | None]:
        """Arguments and results of ``MACELES.forward``."""
        data = dict(data)  # mace's forward writes strained positions into it
        given = inspect.signature(MACELES.forward).bind(self, data, *args, **kwargs).arguments
        if given.get("compute_virials") or given.get("compute_stress"):
            # mace-torch 0.3.16 hands the latent sum unstrained positions; give it the strain to undo that
            n_systems = data["ptr"].numel() - 1
            displacement = data["positions"].new_zeros((n_systems, 3, 3)).requires_grad_()
            data["displacement"] = displacement
            self.les._scfmlip_strain = lambda: (data["positions"], displacement)
        try:
            out = super().forward(data, *args, **kwargs)
        finally:
            self.les._scfmlip_strain = None
        if given.get("compute_stress") and "volume_share" in data:
            out["stress"] = stress_of(out["virials"], data)
        return out


def les_swaps() -> dict[type, type]:
    """Original class to ours."""
    return {MACELES: FastMACELES, Les: FastLes}
