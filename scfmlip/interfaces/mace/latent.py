"""
Latent Ewald summation with the constants of the package `les`, which is not needed for it.

The energy (Cheng, npj Comput. Mater. 11, 80 (2025)) is that of Gaussian charges,
``E = (N / V) sum exp(-sigma^2 k^2 / 2) |S(k)|^2 / k^2`` over 0 < |k| <= 2 pi / dl, less the self terms, in a
crystal and ``(N / 4 pi) sum_(i != j) q_i q_j erf(r / sqrt(2) sigma) / r`` for isolated systems, with
N = 90.0474 eV angstrom / e^2 where 1 / 2 eps0 is 90.4756: our operator with Gaussians of width
sigma / sqrt(2), on charges times `CHARGE_SCALE`. Where a cell has wave vectors of exactly 2 pi / dl, it is
round-off that decides whether either of the two counts them.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from ...electrostatics import Coulomb
from ...units import FIELD_CONSTANT

_NORM_FACTOR = 90.0474

# a latent charge of 1 interacts as this many e
CHARGE_SCALE = math.sqrt(2 * _NORM_FACTOR / FIELD_CONSTANT)


class LesOptions(TypedDict):
    """What the energy of a `les.Les` depends on: width and resolution in angstrom, self terms or not."""

    sigma: float
    dl: float
    remove_self_interaction: bool


def les_options(les: torch.nn.Module) -> LesOptions:
    """
    Options of a `les.Les` that is the plain charge model.

    ``use_atomwise`` is not asked for: MACELES hands over its charges, and then no version uses that network.

    Raises:
        ValueError: for one that is more, or sums otherwise; names the option.
    """
    ewald = getattr(les, "ewald", les)
    switches = ("use_epsilon_r_scaling", "use_fixed_atomic_charges", "use_atomic_alpha")
    found = [name for name in switches if getattr(les, name, False)]
    # says for all systems at once what otherwise each cell says
    if getattr(les, "is_periodic", None) is not None:
        found.append("is_periodic")
    if getattr(ewald, "norm_factor", _NORM_FACTOR) != _NORM_FACTOR:
        found.append("norm_factor")
    if found:
        raise ValueError(
            f"les was given {', '.join(found)}: only its plain model of charges is known here, with the "
            "options sigma, dl and remove_self_interaction"
        )

    # versions differ in which of the two tells
    def option(name: str, usual: float) -> float:
        return getattr(ewald, name, getattr(les, name, usual))

    return {
        "sigma": float(option("sigma", 1.0)),
        "dl": float(option("dl", 2.0)),
        "remove_self_interaction": bool(option("remove_self_interaction", True)),
    }


def latent_coulomb(sigma: float, dl: float, remove_self_interaction: bool) -> Coulomb:
    """
    The operator whose energy of charges times `CHARGE_SCALE` is that of `les`.

    Args:
        sigma: Width in the convention of `les`, angstrom.
        dl: Resolution, angstrom: wave vectors up to 2 pi / dl.
        remove_self_interaction: Whether self terms are left out.
    """
    return Coulomb(
        l_max=0,
        sigma=sigma / math.sqrt(2),
        kspace_cutoff=2 * math.pi / dl,
        compat="les",
        self_interaction=not remove_self_interaction,
    )


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
        sigma: Width in the convention of `les`, angstrom.
        dl: Resolution, angstrom: wave vectors up to 2 pi / dl.
        remove_self_interaction: Whether self terms are left out.

    Returns:
        ``[n_systems]`` eV.
    """
    periodic = torch.linalg.det(cell.detach().double()).abs() >= 1e-6
    coulomb = latent_coulomb(sigma, dl, remove_self_interaction)
    safe = torch.where(periodic[:, None, None], cell, torch.eye(3, dtype=cell.dtype, device=cell.device))
    geometry = coulomb.prepare(positions, safe, periodic[:, None].expand(-1, 3), batch)
    q = charges[:, None] if charges.ndim == 1 else charges
    return geometry.energy(CHARGE_SCALE * q[:, :, None]).sum(1)
