"""What a gate computes: scalars, gates, and the columns that each gate multiplies."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..registry import described

FUNCTIONS = ("silu", "sigmoid")


class Gate(NamedTuple):
    """
    Columns of a row: scalars, gates, and gated columns.

    Attributes:
        n_scalars: Number of scalars.
        groups: Gate of each gated column.
        n_gates: Number of gates.
        scalar: Function of the scalars, ``"silu"`` or ``"sigmoid"``.
        gate: Function of the gates.
        scalar_factor: What the scalars' function is multiplied by.
        gate_factor: Likewise.

    Example:
        >>> from scfmlip_kernels import Gate
        >>> gate = Gate(n_scalars=2, groups=(0, 0, 0), n_gates=1)  # two numbers, a gate and a vector
        >>> gate.n_in, gate.n_out
        (6, 5)
    """

    n_scalars: int
    groups: tuple[int, ...] = ()
    n_gates: int = 0
    scalar: str = "silu"
    gate: str = "sigmoid"
    scalar_factor: float = 1.0
    gate_factor: float = 1.0

    @classmethod
    def from_json(cls, n_scalars: int, groups: list, *rest: object) -> Gate:
        """See `registry`."""
        return cls(n_scalars, tuple(groups), *rest)  # type: ignore[arg-type]

    @property
    def n_in(self) -> int:
        """Columns of a row."""
        return self.n_scalars + self.n_gates + len(self.groups)

    @property
    def n_out(self) -> int:
        """Columns of the result."""
        return self.n_scalars + len(self.groups)

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        if any(not 0 <= g < self.n_gates for g in self.groups):
            raise ValueError(
                f"Gate: groups must be 0 to {self.n_gates - 1}, got {min(self.groups)} to {max(self.groups)}"
            )
        for function in (self.scalar, self.gate):
            if function not in FUNCTIONS:
                raise ValueError(f"Gate: functions are {' and '.join(FUNCTIONS)}, got {function!r}")


@lru_cache(maxsize=1024)
def gate_of(text: str) -> Gate:
    """The gate that a text describes."""
    return described(text, Gate)
