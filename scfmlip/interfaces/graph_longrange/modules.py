"""The public modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .compatible import Compatible, PBCHandling
from .prepared import Prepared


class GTOElectrostaticEnergy(Compatible):
    """
    Electrostatic energy of Gaussian multipoles, as ``graph_longrange.energy.GTOElectrostaticEnergy``.

    Args:
        density_max_l: 0 or 1.
        density_smearing_width: angstrom.
        kspace_cutoff: 1/angstrom.
        include_self_interaction: Whether self terms count.
        include_pbc_corrections: 0.4.0's switch; without them slabs and boxes are crystals.
        pbc_handling: 0.4.4's boundary; None is "auto", as in 0.4.0 (open unless something is periodic).

    Example:
        >>> import torch
        >>> from scfmlip.interfaces.graph_longrange import GTOElectrostaticEnergy
        >>> energy = GTOElectrostaticEnergy(0, 0.5, kspace_cutoff=12.0, pbc_handling="auto")
        >>> positions, charges = torch.tensor([[0.0, 0, 0], [2.8, 0, 0]]), torch.tensor([[1.0], [-1.0]])
        >>> waves = torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        >>> batch, volume, pbc = torch.zeros(2, dtype=torch.long), torch.ones(1), torch.zeros(1, 3).bool()
        >>> energy(*waves, charges, positions, batch, volume, pbc)  # eV, of a molecule in free space
        tensor([-5.1423])
    """

    _original_name = ("graph_longrange.energy", "GTOElectrostaticEnergy")

    def __init__(
        self,
        density_max_l: int,
        density_smearing_width: float,
        kspace_cutoff: float,
        include_self_interaction: bool = False,
        include_pbc_corrections: bool = True,
        pbc_handling: PBCHandling | None = None,
    ) -> None:
        super().__init__(
            density_max_l,
            density_smearing_width,
            kspace_cutoff,
            include_self_interaction,
            pbc_handling,
        )
        self.include_pbc_corrections = include_pbc_corrections

    def _answer(self, prepared: Prepared, rows: Tensor) -> Tensor:
        return prepared.energy(rows)


class GTOElectrostaticFeatures(Compatible):
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
        pbc_handling: 0.4.4's boundary; None is "auto", as in 0.4.0.

    Example:
        >>> import torch
        >>> from scfmlip.interfaces.graph_longrange import GTOElectrostaticFeatures
        >>> features = GTOElectrostaticFeatures(0, 0.5, 1, [1.0, 2.0], False, 12.0, pbc_handling="auto")
        >>> positions, charges = torch.tensor([[0.0, 0, 0], [2.8, 0, 0]]), torch.tensor([[1.0], [-1.0]])
        >>> waves = torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        >>> batch, volume, pbc = torch.zeros(2, dtype=torch.long), torch.ones(1), torch.zeros(1, 3).bool()
        >>> features(*waves, charges, positions, batch, volume, pbc).shape  # two widths, l = 0 and 1
        torch.Size([2, 8])
    """

    _original_name = ("graph_longrange.features", "GTOElectrostaticFeatures")

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
            pbc: Accepted for 0.4.0, not used.
        """
        return self._answer(self._prepared(cache), self._rows(source_feats))

    def compute_esps(self, cache: dict[str, Any], source_feats: Tensor, pbc: Tensor | None = None) -> Tensor:
        """
        Potential at every atom, ``[n_atoms]`` V, including that of its own Gaussian.

        Args:
            cache: From `precompute_geometry`, for crystals and slabs.
            source_feats: ``[n_atoms, (1,) (l + 1)^2]`` rows ``[q, d_y, d_z, d_x]``.
            pbc: Accepted for compatibility, not used.

        Raises:
            ValueError: for isolated systems, as in 0.4.0.
        """
        return self._prepared(cache).potential(self._rows(source_feats))

    @staticmethod
    def _prepared(cache: dict[str, Any]) -> Prepared:
        if "prepared" not in cache:
            raise ValueError("this cache is not from precompute_geometry of a module of scfmlip")
        return cache["prepared"]

    def _answer(self, prepared: Prepared, rows: Tensor) -> Tensor:
        return prepared.features(rows, self.feature_smearing_widths, self.feature_max_l)

    def _options(self) -> dict[str, Any]:
        names = "feature_max_l", "feature_smearing_widths"
        return {**super()._options(), **{name: self.__dict__[name] for name in names}}


class GTOElectrostaticFeaturesMultiChannel(GTOElectrostaticFeatures):
    """
    Field features of several densities at once, like 0.4.0's class of this name.

    Channels are independent for every boundary. The original's are independent in crystals only: isolated
    systems, and corrections of slabs and boxes, sum over its channels.

    Args:
        density_max_l: 0 or 1.
        density_smearing_width: angstrom.
        feature_max_l: 0 or 1.
        feature_smearing_widths: angstrom.
        kspace_cutoff: 1/angstrom.
        include_self_interaction: Whether an atom's own potential counts.
        integral_normalization: "receiver".
        quadrupole_feature_corrections: Accepted and ignored, as the original does.

    Example:
        >>> import torch
        >>> from scfmlip.interfaces.graph_longrange import GTOElectrostaticFeaturesMultiChannel
        >>> features = GTOElectrostaticFeaturesMultiChannel(0, 0.5, 0, [1.0], 12.0)
        >>> features.set_pbc_handling("auto")
        >>> positions = torch.tensor([[0.0, 0, 0], [2.8, 0, 0]])
        >>> spins = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])  # two densities: atoms, channels, rows
        >>> waves = torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0)
        >>> batch, volume, pbc = torch.zeros(2, dtype=torch.long), torch.ones(1), torch.zeros(1, 3).bool()
        >>> features(*waves, spins, positions, batch, volume, pbc).shape
        torch.Size([2, 2, 1])
    """

    _original_name = ("graph_longrange.features", "GTOElectrostaticFeaturesMultiChannel")

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
        """Convert to ``[n_atoms, n_channels, (l + 1)^2]``; one channel may lack its dimension."""
        return source_feats[:, None] if source_feats.ndim == 2 else source_feats
