"""Options of the rules that solve for their density: "equilibrated", "functional", "fixed_point"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..config import LARGEST, check_numbers, check_positive
from .feedback import FeedbackConfig


def check_source(source: str) -> None:
    """Refuse a source that does not exist."""
    if source not in ("electronegativity", "charge"):
        raise ValueError(f"rule.source must be 'electronegativity' or 'charge', got {source!r}")


@dataclass(frozen=True)
class EquilibratedConfig:
    """
    Options.

    Attributes:
        sigma: Width of the Gaussians, angstrom: None for the density's width, "covalent" for each element's
            covalent radius, or a mapping from element to width. In cells, narrow charges are range-separated
            into a smooth operator and neighbours, see `range_split`.
        hardness: Initial hardness of charges, V/e, one for all elements or a mapping; it stays positive.
            Charge is screened within sqrt(J / (4 pi k_e n)) for n atoms per angstrom^3: 0.9 angstrom for
            10 V/e in an oxide. Long-range response is only learned if the atoms in between start with a
            higher hardness.
        dipole_hardness: Initial inverse polarizability, V/(e angstrom^2), likewise.
        source: Output of the network: "electronegativity" for chi; or "charge" for the charges and dipoles s0
            of non-interacting atoms. Then chi = -J s0, the functional is ``1/2 (s - s0).J (s - s0) +
            1/2 s.K s``, and J is trained by its logarithm, which suits stiff atoms.
        local_hardness: Whether the hardness depends on the surroundings.
        energy: "functional" or "coulomb", see `rule`.
        screening: Inner and outer radius, angstrom, between which Coulomb pairs are switched on ("coulomb"
            only). The outer radius is at most the backbone's cutoff.
        feedback: A second network that sees the charges, or None.
        hidden: Width of the readouts.
        tolerance, max_iterations: Tolerance and most iterations of the solve.
    """

    sigma: Literal["covalent"] | Mapping[str, float] | None = None
    hardness: float | Mapping[str, float] = 10.0
    dipole_hardness: float | Mapping[str, float] = 10.0
    source: Literal["electronegativity", "charge"] = "electronegativity"
    local_hardness: bool = False
    energy: Literal["functional", "coulomb"] = "functional"
    screening: tuple[float, ...] | None = None
    feedback: FeedbackConfig | None = None
    hidden: int = 16
    tolerance: float = 1e-6
    max_iterations: int = 500

    def __post_init__(self) -> None:
        check_positive("rule", self, "hardness", "dipole_hardness", "tolerance", "max_iterations")
        check_numbers("rule", self, "hidden", least=int(self.local_hardness), most=LARGEST)
        check_numbers("rule", self, "screening", least=0)
        if self.sigma != "covalent":
            check_positive("rule", self, "sigma")
        check_source(self.source)
        if self.screening is not None:
            if self.energy != "coulomb":
                raise ValueError("rule.screening is for energy='coulomb': the functional is not screened")
            if len(self.screening) != 2 or not 0 <= self.screening[0] < self.screening[1]:
                raise ValueError(f"rule.screening must be (inner, outer), got {self.screening!r}")


@dataclass(frozen=True)
class FunctionalConfig:
    """
    Options.

    Attributes:
        form: "quadratic", "convex" or "general", see `functional`.
        hardness: Initial hardness of charges, V/e, one for all elements or a mapping; it stays positive.
        dipole_hardness: Initial inverse polarizability, V/(e angstrom^2), likewise.
        source: Output of the network: "electronegativity" for b, or "charge" for the charges and dipoles of
            non-interacting atoms, which suits stiff atoms; see `EquilibratedConfig`.
        channels: Number of features that couple charge and dipole.
        kinks: Charges t_k at which the stiffness may change, e.
        hidden: Width of readouts and of the perceptron.
        tolerance, max_iterations: Tolerance and most iterations of the minimisation.
    """

    form: Literal["quadratic", "convex", "general"] = "convex"
    hardness: float | Mapping[str, float] = 10.0
    dipole_hardness: float | Mapping[str, float] = 10.0
    source: Literal["electronegativity", "charge"] = "electronegativity"
    channels: int = 8
    kinks: tuple[float, ...] = (-1.0, 0.0, 1.0)
    hidden: int = 16
    tolerance: float = 1e-6
    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_positive("rule", self, "hardness", "dipole_hardness", "tolerance", "max_iterations")
        check_numbers("rule", self, "channels", "hidden", least=1, most=LARGEST)
        check_numbers("rule", self, "kinks")
        check_source(self.source)


@dataclass(frozen=True)
class FixedPointConfig:
    """
    Options.

    Attributes:
        response: "affine", "mlp", "many_body" or "passive", see `fixed_point.rule`.
        energy: Energy of the state besides the Coulomb energy: "quadratic" in p - p0 and v with coefficients
            from the features, "variational" (for "passive"), or "none".
        field_feature_widths: Widths of the Gaussians on which the potential is projected, angstrom; "passive"
            uses the density's.
        field_feature_max_l: 0 or 1.
        field_feature_norms: Scale of v for each l and width, l first; 1 if None.
        field_self_interaction: Whether v includes an atom's own potential; required for "passive".
        channels: Number of features that the response is built from.
        response_scale: Scale of the initial response, e/V, one for all elements or a mapping: the inverse of
            a hardness, see `EquilibratedConfig`, for a potential that includes the atom's own.
        hidden: Width of readouts.
        tolerance, max_iterations: Tolerance and most iterations of the solve.
    """

    response: Literal["affine", "mlp", "many_body", "passive"] = "affine"
    energy: Literal["quadratic", "variational", "none"] = "quadratic"
    field_feature_widths: tuple[float, ...] = (1.5, 3.0)
    field_feature_max_l: int = 1
    field_feature_norms: tuple[float, ...] | None = None
    field_self_interaction: bool = False
    channels: int = 16
    response_scale: float | Mapping[str, float] = 0.01
    hidden: int = 16
    tolerance: float = 1e-6
    max_iterations: int = 100

    def __post_init__(self) -> None:
        check_positive("rule", self, "response_scale", "tolerance", "max_iterations")
        check_numbers("rule", self, "channels", "hidden", least=1, most=LARGEST)
        check_positive("rule", self, "field_feature_widths", "field_feature_norms")
        if not self.field_feature_widths:
            raise ValueError("rule.field_feature_widths needs at least one width")
        if self.energy == "variational" and self.response != "passive":
            raise ValueError("rule.energy='variational' needs rule.response='passive'")
        if self.field_feature_max_l not in (0, 1):
            raise ValueError(f"rule.field_feature_max_l must be 0 or 1, got {self.field_feature_max_l!r}")
        count = len(self.field_feature_widths) * (self.field_feature_max_l + 1)
        if self.field_feature_norms is not None and len(self.field_feature_norms) != count:
            raise ValueError(
                f"rule.field_feature_norms needs {count} numbers, one for each l and width, got "
                f"{list(self.field_feature_norms)}"
            )
