"""Results of solvers, and their messages on failure."""

from __future__ import annotations

import enum
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..waiting import when

if TYPE_CHECKING:
    from .solvers.memory import SolverMemory


class Status(enum.IntEnum):
    """
    How the solve of one system ended.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.scf import Status
        >>> solution = scfmlip.fixed_point(lambda s: torch.cos(s), torch.zeros(1, 1, dtype=torch.float64))
        >>> Status(int(solution.status)).name
        'CONVERGED'
    """

    CONVERGED = 0
    ITERATIONS = 1
    INDEFINITE = 2
    NOT_FINITE = 3
    STAGNATED = 4


ADVICE = {
    Status.ITERATIONS: "did not reach the tolerance: allow more iterations (max_iterations), loosen the "
    "tolerance, start from a better state, or use another preconditioner or method",
    Status.INDEFINITE: "is not a minimum: hardness plus Coulomb matrix, the energy's second derivatives, is "
    "not positive. Make the hardness positive (for instance the square of a parameter), or let the "
    "functional grow with charge",
    Status.NOT_FINITE: "met NaN or infinity: look at positions, and at electronegativity and hardness or at "
    "what the update returns",
    Status.STAGNATED: "stopped improving above the tolerance, at the rounding of its dtype: loosen the "
    "tolerance or use float64",
}


class ConvergenceError(RuntimeError):
    """
    Raised if a solve failed for some systems.

    Attributes:
        status: ``[n_systems]`` int64 values of `Status`.

    Example:
        >>> import torch, scfmlip
        >>> start = torch.zeros(1, 1, dtype=torch.float64)
        >>> try:
        ...     scfmlip.fixed_point(lambda s: s**2 + 1.0, start)  # has no fixed point: s**2 + 1 > s
        ... except scfmlip.ConvergenceError as error:
        ...     print(error.status)  # see `Status`
        tensor([1])
    """

    def __init__(self, message: str, status: Tensor) -> None:
        super().__init__(message)
        self.status = status


def explain(name: str, status: Tensor, residual: Tensor, iterations: Tensor) -> str | None:
    """One sentence per kind of failure that names the systems; None if all converged."""
    found = status.tolist()
    parts = []
    for kind, advice in ADVICE.items():
        systems = [i for i, s in enumerate(found) if s == kind]
        if systems:
            first = systems[0]
            shown = ", ".join(map(str, systems[:5])) + (", ..." if len(systems) > 5 else "")
            parts.append(
                f"system(s) {shown} (residual {float(residual[first]):.2e} after {int(iterations[first])} "
                f"iterations) {advice}"
            )
    return f"{name}: " + "; ".join(parts) if parts else None


def report(name: str, status: Tensor, residual: Tensor, iterations: Tensor, on_failure: str) -> None:
    """
    Raise an error or warn about systems that did not converge; arguments as in `explain`.

    Args:
        name: Name of the solve, for messages.
        status: ``[n_systems]`` values of `Status`.
        residual: ``[n_systems]``.
        iterations: ``[n_systems]``.
        on_failure: "raise", "warn" or "ignore".

    Raises:
        ConvergenceError: with "raise".
    """
    if on_failure == "ignore":
        return

    def act() -> None:
        message = explain(name, status, residual, iterations)
        assert message is not None
        if on_failure == "raise":
            raise ConvergenceError(message, status)
        warnings.warn(message, stacklevel=5)

    when((status != Status.CONVERGED).any(), act)


def summarize(name: str, status: Tensor, iterations: Tensor, state: Tensor, *more: str) -> str:
    """
    A solution on one line: how many systems converged, in how many steps, and the state's size.

    Args:
        name: Of the class.
        status: ``[n_systems]`` values of `Status`.
        iterations: ``[n_systems]``.
        state: The state.
        more: What else there is to say.
    """
    kinds = [Status(s).name.lower() for s in status.tolist()]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no systems"
    steps = f"up to {int(iterations.max())} iterations" if len(iterations) else "no iterations"
    dtype = str(state.dtype).removeprefix("torch.")
    parts = [counted, steps, f"state {list(state.shape)} {dtype}", *more]
    return f"{name}({'; '.join(parts)})"


def shown(tensor: Tensor, unit: str) -> str:
    """Numbers with a unit: all where they are few, else the range."""
    values = tensor.detach().flatten().tolist()
    if len(values) <= 3:
        return f"{', '.join(f'{v:.6g}' for v in values)} {unit}"
    return f"{min(values):.6g} to {max(values):.6g} {unit}"


@dataclass(frozen=True, repr=False)
class ChargeSolution:
    """
    Charges (and induced dipoles) at the minimum of a quadratic functional.

    Attributes:
        state: ``[n_atoms, dim]`` multipoles, in the rows of the operator.
        chemical_potential: ``[n_groups]`` V, dE/dQ of each group (system or fragment).
        energy: ``[n_systems]`` eV, the functional at its minimum, including external fields.
        iterations: ``[n_systems]`` int64 of the forward solve; 0 for the dense method.
        residual: ``[n_systems]`` float64, norm of the projected gradient relative to that of the source.
        status: ``[n_systems]`` int64, see `Status`.
        memory: For the next solve, if this one was given one; else None.

    Example:
        >>> import torch, scfmlip
        >>> water = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]).double()
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=0.7).prepare(water, None, False)
        >>> chi, hardness = torch.tensor([8.5, 4.5, 4.5]).double(), torch.tensor([2.0, 3.0, 3.0]).double()
        >>> solution = scfmlip.charge_equilibration(geometry, chi, hardness, total_charge=0.0)
        >>> solution.charges  # e
        tensor([-0.7960,  0.3981,  0.3979], dtype=torch.float64)
        >>> round(float(solution.energy), 3), int(solution.status)  # eV; 0 is converged
        (-1.592, 0)
    """

    state: Tensor
    chemical_potential: Tensor
    energy: Tensor
    iterations: Tensor
    residual: Tensor
    status: Tensor
    memory: SolverMemory | None = None

    def __repr__(self) -> str:
        more = f"energy {shown(self.energy, 'eV')}", f"charges {shown(self.charges, 'e')}"
        return summarize("ChargeSolution", self.status, self.iterations, self.state, *more)

    @property
    def charges(self) -> Tensor:
        """Charges ``[n_atoms]``, e."""
        return self.state[:, 0]
