"""
Latent Ewald summation with the constants of the package `les`, which does not need to be installed.

The energy (Cheng, npj Comput. Mater. 11, 80 (2025)) is that of Gaussian charges,
``E = (N / V) sum exp(-sigma^2 k^2 / 2) |S(k)|^2 / k^2`` over 0 < |k| <= 2 pi / dl, minus the self terms, in a
crystal, and ``(N / 4 pi) sum_(i != j) q_i q_j erf(r / sqrt(2) sigma) / r`` for isolated systems. This is our
operator with Gaussians of width sigma / sqrt(2), for charges times `charge_scale`. N is 1 / 2 eps0 = 90.4756
eV angstrom / e^2 in `les` since April 2026 and was 90.0474 before; the model holds its value. If a cell has
wave vectors of exactly 2 pi / dl, round-off decides whether either code includes them.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..electrostatics import Coulomb
from ..units import FIELD_CONSTANT


class LesOptions(TypedDict):
    """
    The options that determine the energy of a `les.Les`.

    Width and resolution in angstrom, self terms or not, and the constant N in eV angstrom / e^2.
    """

    sigma: float
    dl: float
    remove_self_interaction: bool
    norm_factor: float


def charge_scale(norm_factor: float) -> float:
    """The charge in e that corresponds to a latent charge of 1."""
    return math.sqrt(2 * norm_factor / FIELD_CONSTANT)


def les_options(les: Any) -> LesOptions:
    """
    Read the options of a `les.Les` that is the plain charge model.

    ``use_atomwise`` is ignored: MACELES passes its charges, and then no version uses that network.

    Raises:
        ValueError: for a model with more than charges, with another sum, or without its constants; says
            which.
    """
    ewald = getattr(les, "ewald", les)
    switches = ("use_epsilon_r_scaling", "use_fixed_atomic_charges", "use_atomic_alpha")
    found = [name for name in switches if getattr(les, name, False) or getattr(ewald, name, False)]
    # these use the same sum for all systems, whatever their cells, or a fixed grid
    found += [name for name in ("is_periodic", "N_max") if _value(les, ewald, name) is not None]
    if found:
        raise ValueError(
            f"this les has {', '.join(found)}: only its plain charge model is supported, with the options "
            "sigma, dl and remove_self_interaction"
        )
    given = {name: _value(les, ewald, name) for name in LesOptions.__annotations__}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"this les does not expose its {', '.join(missing)}, which its energy depends on")
    sigma, dl, norm = (float(given[name]) for name in ("sigma", "dl", "norm_factor"))
    derived = {"sigma_sq_half": 0.5 * sigma**2, "k_sq_max": (2 * math.pi / dl) ** 2}
    for name, want in derived.items():
        value = getattr(ewald, name, want)
        if not math.isclose(float(value), want, rel_tol=1e-12):
            raise ValueError(
                f"this les has {name} = {float(value):g}, but sigma = {sigma:g} and dl = {dl:g} angstrom "
                f"give {want:g}: its options contradict each other"
            )
    if not (sigma > 0 and dl > 0 and norm > 0):
        raise ValueError(
            f"this les has sigma = {sigma:g}, dl = {dl:g}, norm_factor = {norm:g}: all must be positive"
        )
    return {
        "sigma": sigma,
        "dl": dl,
        "remove_self_interaction": bool(given["remove_self_interaction"]),
        "norm_factor": norm,
    }


def _value(les: Any, ewald: Any, name: str) -> Any:
    """An option from the Ewald module or from ``les``, depending on the version; the former has priority."""
    return getattr(ewald, name, getattr(les, name, None))


def latent_coulomb(sigma: float, dl: float, remove_self_interaction: bool) -> Coulomb:
    """
    The operator whose energy, for charges times `charge_scale`, is that of `les`.

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
    norm_factor: float,
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
        norm_factor: eV angstrom / e^2.

    Returns:
        ``[n_systems]`` eV.
    """
    periodic = torch.linalg.det(cell.detach().double()).abs() >= 1e-6
    coulomb = latent_coulomb(sigma, dl, remove_self_interaction)
    safe = torch.where(periodic[:, None, None], cell, torch.eye(3, dtype=cell.dtype, device=cell.device))
    geometry = coulomb.prepare(positions, safe, periodic[:, None].expand(-1, 3), batch)
    q = charges[:, None] if charges.ndim == 1 else charges
    return geometry.energy(charge_scale(norm_factor) * q[:, :, None]).sum(1)
