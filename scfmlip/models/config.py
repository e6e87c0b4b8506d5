"""Typed model configurations, and their conversion from and to plain dictionaries (YAML, JSON)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from ..types import BoundaryName

Config = TypeVar("Config")
Constraint = Literal["none", "charge", "charge_spin", "fermi_level"]
DTypeName = Literal["float32", "float64"]

# upper limit for numbers of features, widths and channels
LARGEST = 16384
# arguments of mace-torch's constructor that other options set
_TAKEN = {
    "num_elements",
    "atomic_numbers",
    "atomic_energies",
    "interaction_cls",
    "interaction_cls_first",
    "gate",
    "atomic_inter_scale",
    "atomic_inter_shift",
}


def atomic_number(element: int | str) -> int:
    """
    The atomic number of an element given by number or symbol.

    Raises:
        ValueError: for anything else.
    """
    from ase.data import atomic_numbers

    text = str(element)
    number = int(text) if text.isdecimal() else atomic_numbers.get(text, 0)
    if not 0 < number < 119:
        raise ValueError(f"{element!r} is not an element: give atomic numbers or symbols such as 8 or 'O'")
    return number


def per_element(name: str, values: float | Mapping[Any, float], elements: Sequence[int]) -> list[float]:
    """
    One number per element, from a mapping by symbol or number, or from one number for all.

    Raises:
        ValueError: names the elements without a value.
    """
    from ase.data import chemical_symbols

    for value in values.values() if isinstance(values, Mapping) else (values,):
        if not math.isfinite(_number(value)):
            raise ValueError(f"{name} must be finite numbers, got {value!r}")
    if not isinstance(values, Mapping):
        return [float(values)] * len(elements)
    try:
        found = {atomic_number(key): float(value) for key, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    missing = [chemical_symbols[z] for z in elements if z not in found]
    if missing:
        raise ValueError(f"{name} has no value for {', '.join(missing)}; it has {dict(values)}")
    return [found[z] for z in elements]


def energies_per_head(
    values: Any, elements: Sequence[int], heads: Sequence[str]
) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """
    Atomic energies, eV: one row for all heads, or one row per head.

    Args:
        values: A list in the order of ``elements`` or a mapping by element. If heads differ, a mapping from
            every head to one of these, or a list of them in the order of ``heads``. Zero if None.
        elements: Atomic numbers.
        heads: Names of the heads.

    Raises:
        ValueError: names the heads or elements without a value, or what does not match.
    """
    if values is None:
        return (0.0,) * len(elements)
    rows = list(values.values()) if isinstance(values, Mapping) else list(values)
    if not any(isinstance(row, Mapping | Sequence) and not isinstance(row, str) for row in rows):
        if isinstance(values, Mapping):
            return tuple(per_element("atomic_energies", values, elements))
        if len(rows) != len(elements):
            raise ValueError(f"atomic_energies needs {len(elements)} numbers, got {len(rows)}")
        return tuple(rows)
    if isinstance(values, Mapping):
        unknown = [head for head in values if head not in heads]
        missing = [head for head in heads if head not in values]
        if unknown or missing:
            raise ValueError(
                f"atomic_energies by head needs {', '.join(map(repr, heads))} (backbone.heads), got "
                f"{', '.join(map(repr, values))}"
            )
        rows = [values[head] for head in heads]
    elif len(rows) != len(heads):
        raise ValueError(f"atomic_energies by head needs {len(heads)} rows, got {len(rows)}")
    found: list[Any] = [energies_per_head(row, elements, heads) for row in rows]
    return found[0] if all(row == found[0] for row in found) else tuple(found)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """
    Options of the MACE network that turns neighbourhoods into features, named as in mace-torch.

    Attributes:
        r_max: Cutoff, angstrom.
        num_interactions: Number of message-passing layers.
        hidden_irreps: Features of every layer, including the last (mace's ``keep_last_layer_irreps``).
        MLP_irreps: Hidden features of the last energy readout.
        max_ell, correlation, num_bessel, num_polynomial_cutoff, radial_MLP: As in mace-torch.
        interaction, interaction_first: Names of mace-torch's interaction blocks.
        avg_num_neighbors: Mean number of neighbours within ``r_max``.
        scale, shift: Scale and shift of an atom's interaction energy, eV; one number, or one per head.
        keep_last_layer_irreps: Whether the last layer keeps its vectors, from which dipoles are read.
        pair_repulsion: Add the ZBL repulsion.
        distance_transform: "None", "Agnesi" or "Soft".
        heads: Names of the energy heads.
        options: Additional arguments of mace-torch's constructor, by name.

    Example:
        >>> from scfmlip.models import BackboneConfig
        >>> BackboneConfig(r_max=5.0, hidden_irreps="64x0e + 64x1o", num_interactions=2).max_ell
        3
        >>> BackboneConfig(r_max=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: backbone.r_max must be a positive number of at most 100, got -1.0
    """

    r_max: float = 5.0
    num_interactions: int = 2
    hidden_irreps: str = "64x0e+64x1o"
    MLP_irreps: str = "16x0e"
    max_ell: int = 3
    correlation: int = 3
    num_bessel: int = 8
    num_polynomial_cutoff: int = 5
    radial_MLP: tuple[int, ...] = (64, 64, 64)
    interaction: str = "RealAgnosticResidualInteractionBlock"
    interaction_first: str = "RealAgnosticResidualInteractionBlock"
    avg_num_neighbors: float = 1.0
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    keep_last_layer_irreps: bool = True
    pair_repulsion: bool = False
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    heads: tuple[str, ...] = ("Default",)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers("backbone", self, "r_max", above=0, most=100)
        check_numbers("backbone", self, "avg_num_neighbors", above=0, most=1e6)
        check_numbers("backbone", self, "num_interactions", "num_polynomial_cutoff", least=1, most=100)
        check_numbers("backbone", self, "max_ell", least=0, most=11)  # e3nn has no more
        if self.max_ell == 0 and not self.options.get("use_reduced_cg"):
            raise ValueError(
                "backbone.max_ell is 0, which mace-torch's full contraction basis does not support: set it "
                "to 1 or more, or set use_reduced_cg: true in backbone.options"
            )
        check_numbers("backbone", self, "correlation", least=1, most=6)
        check_numbers("backbone", self, "num_bessel", "radial_MLP", least=1, most=LARGEST)
        check_numbers("backbone", self, "scale", "shift")
        check_irreps("backbone.hidden_irreps", self.hidden_irreps, self.max_ell)
        check_irreps("backbone.MLP_irreps", self.MLP_irreps, 0)
        if not self.heads or len(set(self.heads)) < len(self.heads) or not all(self.heads):
            raise ValueError(f"backbone.heads must be one or more different names, got {list(self.heads)}")
        for name in ("scale", "shift"):
            try:
                self.per_head(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"backbone.{name}: {error}") from None
        if not all(self.per_head(self.scale)):
            raise ValueError(f"backbone.scale must not be 0, which silences the network, got {self.scale!r}")
        taken = [key for key in self.options if key in _TAKEN or key in vars(self)]
        if taken:
            raise ValueError(f"backbone.options must not hold {', '.join(taken)}: other options set them")

    def per_head(self, value: float | tuple[float, ...]) -> list[float]:
        """
        One number per head.

        Raises:
            ValueError: for the wrong number of values.
        """
        values = [float(v) for v in (value if isinstance(value, tuple) else (value,) * len(self.heads))]
        if len(values) != len(self.heads):
            raise ValueError(f"got {len(values)} numbers for {len(self.heads)} heads: {values}")
        return values


@dataclasses.dataclass(frozen=True)
class DensityConfig:
    """
    Options of the Gaussian multipole density and its Coulomb operator.

    Attributes:
        l_max: 0 for charges, 1 for dipoles too, 2 for quadrupoles too, in rules that know them.
        sigma: Gaussian width, angstrom.
        boundary: As in `scfmlip.Coulomb`.
        self_interaction: Whether the electrostatic energy includes the self-interaction of each Gaussian.
            Rules whose density minimises an energy always include it.
        tolerance: Tolerance of the wave-vector sum, eV.
        kspace_cutoff_factor: Set the cutoff as mace does instead: this factor times ``2.25 (l_max + 1)^0.3 /
            sigma``, with the smallest width, including those of the field features.

    Example:
        >>> from scfmlip.models import DensityConfig, make_config
        >>> density = DensityConfig(l_max=1, sigma=1.2)  # charges and dipoles in Gaussians of 1.2 angstrom
        >>> config = make_config({"elements": ["H", "O"], "rule": "local", "density": {"sigma": 1.2}})
        >>> config.density == density
        True
    """

    l_max: int = 1
    sigma: float = 1.5
    boundary: BoundaryName = "auto"
    self_interaction: bool = True
    tolerance: float = 1e-6
    kspace_cutoff_factor: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.l_max, bool) or self.l_max not in (0, 1, 2):
            raise ValueError(f"density.l_max must be 0, 1 or 2, got {self.l_max!r}")
        check_positive("density", self, "sigma")
        check_numbers("density", self, "tolerance", above=0, below=1)
        check_numbers("density", self, "kspace_cutoff_factor", above=0, most=100)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """
    Configuration of one model of the design space.

    Attributes:
        elements: Atomic numbers, in the order of the one-hot encoding.
        atomic_energies: eV of each of ``elements``; one row per head if heads differ.
        rule: Configuration of the charge rule; its class determines the rule.
        backbone, density: See `BackboneConfig` and `DensityConfig`.
        constraint: Constraint on the state: "none", the total "charge" of each system, "charge_spin" for
            charge and multiplicity, or a "fermi_level".
        seed: Seed of the initial weights.
        dtype: dtype of the weights.

    Example:
        >>> from scfmlip.models import make_config
        >>> config = make_config({"elements": ["H", "O"], "rule": "equilibrated", "constraint": "charge"})
        >>> config.elements, config.constraint, config.dtype
        ((1, 8), 'charge', 'float32')
    """

    elements: tuple[int, ...]
    atomic_energies: tuple[float, ...] | tuple[tuple[float, ...], ...]
    rule: Any
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    density: DensityConfig = dataclasses.field(default_factory=DensityConfig)
    constraint: Constraint = "none"
    seed: int = 0
    dtype: DTypeName = "float32"

    def __post_init__(self) -> None:
        check_numbers("model", self, "atomic_energies")
        check_numbers("model", self, "seed", least=0, below=2**32)

    @property
    def energies_by_head(self) -> dict[str, tuple[float, ...]]:
        """Atomic energies, eV of each of ``elements``, by head."""
        heads = self.backbone.heads
        rows = np.broadcast_to(np.array(self.atomic_energies, dtype=float), (len(heads), len(self.elements)))
        return {head: tuple(row.tolist()) for head, row in zip(heads, rows, strict=True)}


def check_numbers(
    where: str,
    config: Any,
    *names: str,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """
    Refuse options that are not finite numbers within bounds.

    Args:
        where: Name of the group of options, for messages.
        config: Object with the options: numbers, lists of numbers or mappings to numbers. None is skipped.
        names: Names of the options.
        above: Exclusive lower bound; None for no bound.
        least: Inclusive lower bound.
        below: Exclusive upper bound.
        most: Inclusive upper bound.

    Raises:
        ValueError: names the option, its value and what is allowed.
    """
    bounds = [("above", above), ("of at least", least), ("below", below), ("of at most", most)]
    parts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    kind = "a number"
    if above == 0:
        kind, parts = "a positive number", parts[1:]
    for name in names:
        given = getattr(config, name)
        if given is None:
            continue
        for value in _flat(given):
            number = _number(value)
            if (
                not math.isfinite(number)
                or (above is not None and number <= above)
                or (least is not None and number < least)
                or (below is not None and number >= below)
                or (most is not None and number > most)
            ):
                path = f"{where}.{name}" if where else name
                text = " ".join([kind, " and ".join(parts)]).strip()
                raise ValueError(f"{path} must be {text}, got {given!r}")


def _flat(given: Any) -> Iterator[Any]:
    """All values in nested mappings and lists, or the value itself."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if not isinstance(given, (list, tuple)):
        yield given
        return
    for value in given:
        yield from _flat(value)


def _number(value: Any) -> float:
    """The value as a float; NaN if it is not a number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e3 as text
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_positive(where: str, config: Any, *names: str) -> None:
    """Refuse options that are not positive, see `check_numbers`."""
    check_numbers(where, config, *names, above=0)


def check_irreps(where: str, text: str, l_max: int) -> None:
    """
    Refuse features that mace-torch's layers do not support.

    Raises:
        ValueError: for invalid irreps. They must be scalars first, then one block for each l up to ``l_max``,
            with the parity of spherical harmonics and equal multiplicities.
    """
    import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
    from e3nn import o3

    wanted = "scalars" if l_max == 0 else f"scalars and, of l = 1 to {l_max}, as many of each"
    usual = "16x0e" if l_max == 0 else "64x0e+64x1o"
    try:
        blocks = list(o3.Irreps(text))
    except Exception:  # e3nn may raise anything
        blocks = []
    counts = {mul for mul, _ in blocks}
    order = [ir.l for _, ir in blocks]
    good = bool(blocks) and order[0] == 0 and order == sorted(set(order)) and order[-1] <= l_max
    good = good and len(counts) == 1 and all(ir.p == (-1) ** ir.l for _, ir in blocks)
    if not good or not 0 < min(counts) <= LARGEST:
        raise ValueError(f"{where} must be irreps of {wanted}, such as {usual!r}, got {text!r}")


def from_dict(cls: type[Config], values: Any, where: str) -> Config:
    """
    Make a dataclass from a mapping; errors name every mistake.

    Args:
        cls: The dataclass; nested dataclasses are filled from nested mappings.
        values: The mapping, or an instance of ``cls``, which is returned unchanged.
        where: Name for messages.

    Raises:
        ValueError: for an unknown or missing option, or a value that is not allowed.
        TypeError: for a value of the wrong type.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise TypeError(f"{where} must be a mapping of options, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"; did you mean {near[0]!r}? It takes" if near else "; it takes"
            raise ValueError(f"{where} has no option {key!r}{hint} {', '.join(fields) or 'none'}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert ``value`` to the annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {list(arguments)}, got {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_to_any(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f"{where} must be a list, got {value!r}")
        return tuple(_convert(arguments[0], v, where) for v in value)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} must be a mapping, got {value!r}")
        return dict(value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-6 as a string
        except (ValueError, OverflowError):
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{where} must be {_name(hint)}, got {value!r}")


def _convert_to_any(hint: Any, value: Any, where: str) -> Any:
    """Convert ``value`` to the first member of a union that accepts it."""
    arguments = typing.get_args(hint)
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    if len(options) == 1:
        return _convert(options[0], value, where)
    for option in options:
        try:
            return _convert(option, value, where)
        except (TypeError, ValueError):
            continue
    raise TypeError(f"{where} must be {_name(hint)}, got {value!r}")


def _name(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {list(arguments)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_name(option) for option in arguments)
    if hint is type(None):
        return "null"
    kind = {tuple: "a list", dict: "a mapping", Mapping: "a mapping"}.get(origin or hint)
    return kind or getattr(hint, "__name__", str(hint))
