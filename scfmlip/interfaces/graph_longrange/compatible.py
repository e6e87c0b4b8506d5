"""The common base of the modules, compatible with the originals."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from ...electrostatics import Coulomb
from .cells import cells_from_wave_vectors
from .prepared import Prepared, volume_terms

PBCHandling = Literal["realspace", "pbc", "slab", "molecule_in_box", "mixed_periodic", "auto"]


class Compatible(torch.nn.Module):
    """
    Common base of the modules: options, boundary names, state dicts and submodules of the originals.

    Other modules of that package access the originals' submodules, tables and helpers. They come from an
    original with the same options, which is created on first access if the package is installed.
    """

    # module and class of the original
    _original_name: tuple[str, str]

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
        self._told = pbc_handling is not None
        self.pbc_handling: PBCHandling = "auto" if pbc_handling is None else pbc_handling
        self.include_pbc_corrections = True
        # follows the module's dtype and device
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self._coulomb(self.pbc_handling)  # checks the options

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_like" not in self.__dict__.get("_buffers", {}):
                raise
            original = self._original()
            if original is None or not hasattr(original, name):
                raise
            return getattr(original, name)

    def _options(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        names = "density_max_l", "density_smearing_width", "kspace_cutoff", "include_self_interaction"
        return {name: self.__dict__[name] for name in (*names, "pbc_handling", "include_pbc_corrections")}

    def _original(self) -> torch.nn.Module | None:
        """The package's own module with these options, or None if it is not installed."""
        made = self.__dict__.get("_made")
        if made is None:
            try:
                cls = getattr(importlib.import_module(self._original_name[0]), self._original_name[1])
            except (ImportError, AttributeError):
                return None
            known = inspect.signature(cls.__init__).parameters
            module = cls(**{k: v for k, v in self._options().items() if k in known})
            # in a tuple, so that it is not a child: this module's state dict has no tables
            made = self.__dict__["_made"] = (module.to(self._like),)
        return made[0]

    def _apply(self, *args: Any, **kwargs: Any) -> Compatible:
        super()._apply(*args, **kwargs)
        if "_made" in self.__dict__:
            self.__dict__["_made"][0].to(self._like)
        return self

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
        self.pbc_handling, self._told = pbc_handling, True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Accept the originals' tables, which are not needed here."""

    def _boundary(self, periodic: bool, force_pbc_evaluator: bool | None) -> PBCHandling:
        if not self.include_pbc_corrections:
            return "pbc" if periodic or force_pbc_evaluator else "realspace"
        if self.pbc_handling == "auto" and force_pbc_evaluator:
            return "mixed_periodic"
        if not periodic and not self._told and force_pbc_evaluator is None:
            self._told = True
            warnings.warn(
                f"{type(self).__name__} got no pbc_handling and sums isolated systems over pairs, like "
                "graph-longrange 0.4.0; by default 0.4.4 puts them into boxes: set "
                "pbc_handling='realspace' or 'mixed_periodic'",
                stacklevel=4,
            )
        return self.pbc_handling

    def _prepare(
        self,
        k_vectors: Tensor,
        k_vector_batch: Tensor,
        node_positions: Tensor,
        batch: Tensor,
        volume: Tensor,
        pbc: Tensor,
        force_pbc_evaluator: bool | None,
        cell: Tensor | None,
    ) -> Prepared:
        n_systems = volume.numel()
        flags = pbc.reshape(-1, 3).expand(n_systems, 3)
        boundary = self._boundary(bool(flags.any()), force_pbc_evaluator)
        opened = boundary == "realspace" or (boundary == "auto" and not bool(flags.any()))
        if cell is None and not opened:
            cell = cells_from_wave_vectors(k_vectors, k_vector_batch, n_systems)
        elif cell is not None:
            cell = cell.reshape(-1, 3, 3)
        order = None
        if bool((batch[1:] < batch[:-1]).any()):
            order = torch.argsort(batch, stable=True)
            node_positions, batch = node_positions[order], batch[order]
        geometry = self._coulomb(boundary).prepare(node_positions, cell, flags, batch)
        if cell is None or geometry.plan.lattice is None:
            return Prepared(geometry, order, None, None)
        return Prepared(geometry, order, *volume_terms(geometry, cell, volume))

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
        """Make the ``cache`` for `forward_dynamic`; arguments as in `forward`."""
        prepared = self._prepare(
            k_vectors, k_vector_batch, node_positions, batch, volume, pbc, force_pbc_evaluator, cell
        )
        return {"prepared": prepared}

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
            k_vectors: ``[n_k, 3]``; the cell is computed from them unless given.
            k_norm2: Not used.
            k_vector_batch: ``[n_k]`` system of each wave vector.
            k0_mask: Not used.
            source_feats: ``[n_atoms, (1,) (l + 1)^2]`` rows ``[q, d_y, d_z, d_x]``.
            node_positions: ``[n_atoms, 3]`` angstrom.
            batch: ``[n_atoms]`` system of each atom, in any order.
            volume: ``[n_systems]`` angstrom^3, divisor of the sums, as in the original even if it is not the
                cell's volume.
            pbc: ``[n_systems, 3]``.
            force_pbc_evaluator: 0.4.0's switch.
            cell: ``[n_systems, 3, 3]``, optional.
        """
        prepared = self._prepare(
            k_vectors, k_vector_batch, node_positions, batch, volume, pbc, force_pbc_evaluator, cell
        )
        return self._answer(prepared, self._rows(source_feats))

    def _rows(self, source_feats: Tensor) -> Tensor:
        """Convert ``[n_atoms, (1,) (l + 1)^2]`` to ``[n_atoms, (l + 1)^2]``."""
        return source_feats.squeeze(1) if source_feats.ndim == 3 else source_feats

    def _answer(self, prepared: Prepared, rows: Tensor) -> Tensor:
        raise NotImplementedError
