"""
MACELES on our Coulomb operator.

Latent Ewald summation (Cheng, npj Comput. Mater. 11, 80 (2025)) is the energy of Gaussian charges,
``E = (N / V) sum exp(-sigma^2 k^2 / 2) |S(k)|^2 / k^2`` over 0 < |k| < 2 pi / dl, less the self terms, in a
crystal and ``(N / 4 pi) sum_(i != j) q_i q_j erf(r / sqrt(2) sigma) / r`` for isolated systems, with
N = 90.0474 eV angstrom / e^2 where 1 / 2 eps0 is 90.4756: our operator with Gaussians of width
sigma / sqrt(2), scaled.
"""

# mace-torch's modules have no types: torch.nn.Module says Tensor | Module for every attribute
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from les import Les
from mace.modules.extensions import MACELES
from torch import Tensor

from ...electrostatics import Coulomb
from ...units import FIELD_CONSTANT
from .swapped import Swapped

_NORM_FACTOR = 90.0474


def latent_energy(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    sigma: float,
    dl: float,
    remove_self_interaction: bool,
) -> Tensor:
    """
    Latent Ewald energy of each system.

    Args:
        charges: ``[n_atoms]`` or ``[n_atoms, n_channels]`` latent charges.
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom; zero for an isolated system.
        batch: ``[n_atoms]`` system of each atom.
        sigma: Width, angstrom.
        dl: Resolution, angstrom: wave vectors up to 2 pi / dl.
        remove_self_interaction: Whether self terms are left out.

    Returns:
        ``[n_systems]`` eV.
    """
    periodic = torch.linalg.det(cell.detach().double()) >= 1e-6
    coulomb = Coulomb(
        l_max=0,
        sigma=sigma / math.sqrt(2),
        kspace_cutoff=2 * math.pi / dl,
        compat="les",
        self_interaction=not remove_self_interaction,
    )
    safe = torch.where(periodic[:, None, None], cell, torch.eye(3, dtype=cell.dtype, device=cell.device))
    geometry = coulomb.prepare(positions, safe, periodic[:, None].expand(-1, 3), batch)
    q = charges[:, None] if charges.ndim == 1 else charges
    energy = geometry.energy(q[:, :, None]).sum(1)
    return energy * (2 * _NORM_FACTOR / FIELD_CONSTANT)


def _plain(les: torch.nn.Module) -> bool:
    """Whether a Les module is the one-width charge model; others keep their own code."""
    switches = ("use_epsilon_r_scaling", "use_fixed_atomic_charges", "use_atomic_alpha", "use_atomwise")
    return not any(getattr(les, name, False) for name in switches)


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
        charges = given["latent_charges"]
        if (
            charges is None
            or not given["compute_energy"]
            or given.get("compute_field", False)
            or any(given.get(name) is not None for name in beyond)
            or not _plain(self)
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
        out["E_lr"] = latent_energy(
            charges,
            positions,
            cell.reshape(-1, 3, 3),
            batch,
            float(self.sigma),
            float(self.dl),
            bool(self.remove_self_interaction),
        )
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
            return super().forward(data, *args, **kwargs)
        finally:
            self.les._scfmlip_strain = None


def les_swaps() -> dict[type, type]:
    """Original class to ours."""
    return {MACELES: FastMACELES, Les: FastLes}
