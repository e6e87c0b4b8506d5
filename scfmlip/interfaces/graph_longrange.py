"""
Modules with graph-longrange's names, arguments and numbers, on our Coulomb operator.

Change the import and keep the script: constructor arguments and calls of graph-longrange 0.4.0 and 0.4.4
are both understood. Results are `Coulomb(compat="graph_longrange")`'s: equal to that package's, in O(atoms +
wave vectors) memory. The cell is read off the wave vectors, or passed as ``cell`` to save that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..electrostatics import Coulomb, Geometry

PBCHandling = Literal["realspace", "pbc", "slab", "molecule_in_box", "mixed_periodic", "auto"]


def cells_from_wave_vectors(k_vectors: Tensor, k_vector_batch: Tensor, n_systems: int) -> Tensor:
    """
    The cells whose reciprocal lattices a flat list of wave vectors samples.

    The three shortest independent vectors of a three-dimensional lattice generate it.

    Args:
        k_vectors: ``[n_k, 3]``, each system's half space of wave vectors.
        k_vector_batch: ``[n_k]`` system of each.
        n_systems: Number of systems.

    Returns:
        ``[n_systems, 3, 3]`` cells with right-handed rows, differentiable in ``k_vectors``.

    Raises:
        ValueError: for a system with fewer than three independent wave vectors.
    """
    host = k_vectors.detach().to("cpu", torch.float64)
    batch = k_vector_batch.to("cpu")
    chosen = []
    for i in range(n_systems):
        rows = torch.nonzero(batch == i).flatten()
        order = rows[host[rows].norm(dim=1).argsort()]
        basis: list[int] = []
        for row in order.tolist():
            trial = host[[*basis, row]]
            lengths = trial.norm(dim=1, keepdim=True)
            if float(lengths.min()) == 0.0:
                continue
            if int(torch.linalg.matrix_rank(trial / lengths, tol=1e-4)) == len(trial):
                basis.append(row)
            if len(basis) == 3:
                break
        if len(basis) < 3:
            raise ValueError(
                f"system {i} has fewer than three independent wave vectors, which do not tell its cell: "
                "raise the k-space cutoff or pass cell=[n_systems, 3, 3]"
            )
        if float(torch.linalg.det(host[basis])) < 0:
            basis = [basis[1], basis[0], basis[2]]
        chosen.append(basis)
    rows = torch.tensor(chosen, device=k_vectors.device)
    return 2 * math.pi * torch.linalg.inv(k_vectors[rows.flatten()].view(n_systems, 3, 3)).mT


class _Compatible(torch.nn.Module):
    """What the two modules share: options, boundary names, and state dicts of the originals."""

    def __init__(
        self,
        density_max_l: int,
        density_smearing_width: float,
        kspace_cutoff: float,
        include_self_interaction: bool,
        pbc_handling: PBCHandling | None,
    ) -> None:
        super().__init__()
        self.density_max_l, self.density_smearing_width = density_max_l, density_smearing_width
        self.kspace_cutoff = float(kspace_cutoff)
        self.include_self_interaction = include_self_interaction
        self.pbc_handling: PBCHandling | None = pbc_handling
        self._coulomb("auto")  # checks the options

    def _coulomb(self, boundary: PBCHandling) -> Coulomb:
        return Coulomb(
            l_max=self.density_max_l,
            sigma=self.density_smearing_width,
            boundary=boundary,
            self_interaction=self.include_self_interaction,
            kspace_cutoff=self.kspace_cutoff,
            compat="graph_longrange",
            order="e3nn",
        )

    def set_pbc_handling(self, pbc_handling: PBCHandling) -> None:
        """Choose the boundary condition of later calls (0.4.4)."""
        self._coulomb(pbc_handling)
        self.pbc_handling = pbc_handling

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Accept the originals' tables, which are not needed here."""

    def _geometry(
        self,
        k_vectors: Tensor,
        k_vector_batch: Tensor,
        node_positions: Tensor,
        batch: Tensor,
        volume: Tensor,
        pbc: Tensor,
        force_pbc_evaluator: bool | None,
        cell: Tensor | None,
    ) -> Geometry:
        n_systems = volume.numel()
        flags = pbc.reshape(-1, 3).expand(n_systems, 3)
        if self.pbc_handling is not None and force_pbc_evaluator is None:
            boundary: PBCHandling = self.pbc_handling
        else:  # 0.4.0: open unless something in the batch is periodic
            boundary = "mixed_periodic" if force_pbc_evaluator else "auto"
        opened = boundary == "realspace" or (boundary == "auto" and not bool(flags.any()))
        if cell is None and not opened:
            cell = cells_from_wave_vectors(k_vectors, k_vector_batch, n_systems)
        elif cell is not None:
            cell = cell.reshape(-1, 3, 3)
        return self._coulomb(boundary).prepare(node_positions, cell, flags, batch)

    def precompute_geometry(
        self,
        k_vectors: Tensor,
        k_norm2: Tensor,
        k_vector_batch: Tensor,
        k0_mask: Tensor,
        node_positions: Tensor,
        batch: Tensor,
        volume: Tensor,
        pbc: Tensor,
        force_pbc_evaluator: bool | None = None,
        cell: Tensor | None = None,
    ) -> dict[str, Any]:
        """What `forward_dynamic` takes as ``cache``; arguments as in `forward`."""
        geometry = self._geometry(
            k_vectors, k_vector_batch, node_positions, batch, volume, pbc, force_pbc_evaluator, cell
        )
        return {"geometry": geometry}

    def forward(
        self,
        k_vectors: Tensor,
        k_norm2: Tensor,
        k_vector_batch: Tensor,
        k0_mask: Tensor,
        source_feats: Tensor,
        node_positions: Tensor,
        batch: Tensor,
        volume: Tensor,
        pbc: Tensor,
        force_pbc_evaluator: bool | None = None,
        cell: Tensor | None = None,
    ) -> Tensor:
        """
        Energy of each system, ``[n_systems]`` eV; features of each atom, ``[n_atoms, n_widths * (l + 1)^2]``.

        Args:
            k_vectors: ``[n_k, 3]``; the cell is read off them unless given.
            k_norm2: Not used.
            k_vector_batch: ``[n_k]`` system of each wave vector.
            k0_mask: Not used.
            source_feats: ``[n_atoms, (1,) (l + 1)^2]`` rows ``[q, d_y, d_z, d_x]``.
            node_positions: ``[n_atoms, 3]`` angstrom.
            batch: ``[n_atoms]``.
            volume: ``[n_systems]``; counts the systems.
            pbc: ``[n_systems, 3]``.
            force_pbc_evaluator: 0.4.0's switch.
            cell: ``[n_systems, 3, 3]``, optional.
        """
        geometry = self._geometry(
            k_vectors, k_vector_batch, node_positions, batch, volume, pbc, force_pbc_evaluator, cell
        )
        return self._answer(geometry, self._rows(source_feats))

    def _rows(self, source_feats: Tensor) -> Tensor:
        """``[n_atoms, (l + 1)^2]`` from that or with a dimension of 1 in second place."""
        return source_feats.squeeze(1) if source_feats.ndim == 3 else source_feats

    def _answer(self, geometry: Geometry, rows: Tensor) -> Tensor:
        raise NotImplementedError


class GTOElectrostaticEnergy(_Compatible):
    """
    Electrostatic energy of Gaussian multipoles, as ``graph_longrange.energy.GTOElectrostaticEnergy``.

    Args:
        density_max_l: 0 or 1.
        density_smearing_width: angstrom.
        kspace_cutoff: 1/angstrom.
        include_self_interaction: Whether self terms count.
        include_pbc_corrections: 0.4.0's switch; False is ``pbc_handling="pbc"``.
        pbc_handling: 0.4.4's boundary; None behaves as 0.4.0 (open unless something is periodic).
    """

    def __init__(
        self,
        density_max_l: int,
        density_smearing_width: float,
        kspace_cutoff: float,
        include_self_interaction: bool = False,
        include_pbc_corrections: bool = True,
        pbc_handling: PBCHandling | None = None,
    ) -> None:
        if not include_pbc_corrections and pbc_handling is None:
            pbc_handling = "pbc"
        super().__init__(
            density_max_l,
            density_smearing_width,
            kspace_cutoff,
            include_self_interaction,
            pbc_handling,
        )

    def _answer(self, geometry: Geometry, rows: Tensor) -> Tensor:
        return geometry.energy(rows)


class GTOElectrostaticFeatures(_Compatible):
    """
    Field features of Gaussian multipoles, as ``graph_longrange.features.GTOElectrostaticFeatures``.

    Args:
        density_max_l: 0 or 1.
        density_smearing_width: angstrom.
        feature_max_l: 0 or 1.
        feature_smearing_widths: angstrom.
        include_self_interaction: Whether an atom's own potential counts.
        kspace_cutoff: 1/angstrom.
        quadrupole_feature_corrections: Accepted and ignored, as the original does.
        integral_normalization: "receiver".
        pbc_handling: 0.4.4's boundary; None behaves as 0.4.0.
    """

    def __init__(
        self,
        density_max_l: int,
        density_smearing_width: float,
        feature_max_l: int,
        feature_smearing_widths: Sequence[float],
        include_self_interaction: bool,
        kspace_cutoff: float,
        quadrupole_feature_corrections: bool = False,
        integral_normalization: str = "receiver",
        pbc_handling: PBCHandling | None = None,
    ) -> None:
        if integral_normalization != "receiver":
            raise ValueError(f"integral_normalization must be 'receiver', got {integral_normalization!r}")
        super().__init__(
            density_max_l,
            density_smearing_width,
            kspace_cutoff,
            include_self_interaction,
            pbc_handling,
        )
        self.feature_max_l = feature_max_l
        self.feature_smearing_widths = [float(w) for w in feature_smearing_widths]

    def forward_dynamic(
        self, cache: dict[str, Any], source_feats: Tensor, pbc: Tensor | None = None
    ) -> Tensor:
        """
        Features ``[n_atoms, n_widths * (l + 1)^2]`` of a density at a prepared geometry.

        Args:
            cache: From `precompute_geometry`.
            source_feats: ``[n_atoms, (1,) (l + 1)^2]`` rows ``[q, d_y, d_z, d_x]``.
            pbc: Accepted as 0.4.0 passes it, not used.
        """
        geometry: Geometry = cache["geometry"]
        return self._answer(geometry, self._rows(source_feats))

    def _answer(self, geometry: Geometry, rows: Tensor) -> Tensor:
        return geometry.features(rows, widths=self.feature_smearing_widths, l_max=self.feature_max_l)


class GTOElectrostaticFeaturesMultiChannel(GTOElectrostaticFeatures):
    """
    Field features of several densities at once, as 0.4.0's class of this name.

    Channels are independent whatever the boundary; the original's are in crystals only (isolated systems and
    corrections of slabs and boxes sum over its channels).

    Args:
        density_max_l: 0 or 1.
        density_smearing_width: angstrom.
        feature_max_l: 0 or 1.
        feature_smearing_widths: angstrom.
        kspace_cutoff: 1/angstrom.
        include_self_interaction: Whether an atom's own potential counts.
        integral_normalization: "receiver".
        quadrupole_feature_corrections: Accepted and ignored, as the original does.
    """

    def __init__(
        self,
        density_max_l: int,
        density_smearing_width: float,
        feature_max_l: int,
        feature_smearing_widths: Sequence[float],
        kspace_cutoff: float,
        include_self_interaction: bool = False,
        integral_normalization: str = "receiver",
        quadrupole_feature_corrections: bool = False,
    ) -> None:
        super().__init__(
            density_max_l,
            density_smearing_width,
            feature_max_l,
            feature_smearing_widths,
            include_self_interaction,
            kspace_cutoff,
            quadrupole_feature_corrections,
            integral_normalization,
        )

    def _rows(self, source_feats: Tensor) -> Tensor:
        """``[n_atoms, n_channels, (l + 1)^2]`` from that or one channel without its dimension."""
        return source_feats[:, None] if source_feats.ndim == 2 else source_feats
