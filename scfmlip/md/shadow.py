"""What velocity Verlet conserves better than the energy."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from .config import MdConfig


class ShadowEnergy:
    """
    Shadow energy of velocity Verlet's steps, which shows losses of energy that the time step hides.

    Steps of length h solve the equations of another Hamiltonian exactly but for terms of order h^4::

        H + h^2 (v . U'' v / 12 - sum_i |F_i|^2 / (24 m_i))

    The second term grows with temperature, so the total energy of a structure that heats up or cools down
    moves by order h^2 without any loss. The shadow energy does not move. Here it is the mean of that over
    both ends of a step, with ``U'' v = -(F_1 - F_0) / h`` and the step's mean velocity for v: it costs no
    evaluation. Hairer, Lubich and Wanner, https://doi.org/10.1017/S0962492902000144, section 5; Engle, Skeel
    and Drees, https://doi.org/10.1016/j.jcp.2004.12.009.

    Args:
        timestep: h, in ASE's unit of time.

    Attributes:
        energy: Of the last step, eV; None before it.

    Example:
        >>> import numpy as np
        >>> from ase import Atoms
        >>> from ase.calculators.lj import LennardJones
        >>> from ase.md.verlet import VelocityVerlet
        >>> from scfmlip.md.shadow import ShadowEnergy
        >>> atoms = Atoms("Ar2", [[0, 0, 0], [1.3, 0, 0]], calculator=LennardJones(rc=5.0))
        >>> shadow, dynamics, total, kept = ShadowEnergy(0.1), VelocityVerlet(atoms, 0.1), [], []
        >>> for _ in range(50):
        ...     shadow.begin(atoms)
        ...     forces = dynamics.step()
        ...     shadow.end(atoms)
        ...     total.append(atoms.get_total_energy())
        ...     kept.append(shadow.energy)
        >>> bool(np.ptp(kept) < 0.05 * np.ptp(total))
        True
    """

    def __init__(self, timestep: float) -> None:
        self.timestep = timestep
        self.energy: float | None = None
        self._total, self._forces = 0.0, np.zeros((0, 3))

    def begin(self, atoms: Atoms) -> None:
        """Look at the atoms before a step."""
        self._total, self._forces = _state(atoms)

    def end(self, atoms: Atoms) -> None:
        """Look at them after it."""
        h, mass = self.timestep, atoms.get_masses()[:, None]
        total, forces = _state(atoms)
        mean = atoms.get_velocities() - 0.5 * h * forces / mass
        bend = float((mean * (forces - self._forces)).sum())
        square = float(((forces**2 + self._forces**2) / mass).sum())
        self.energy = 0.5 * (total + self._total) - h / 12 * bend - h**2 / 48 * square


def _state(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Total energy, and the forces that move the atoms."""
    return float(atoms.get_total_energy()), np.array(atoms.get_forces(md=True), dtype=float)


def shadow_of(config: MdConfig, atoms: Atoms, timestep: float) -> ShadowEnergy | None:
    """That of a run; None without velocity Verlet, or with constraints that forces alone do not keep."""
    held = all(isinstance(c, FixAtoms | FixCartesian) for c in atoms.constraints)
    return ShadowEnergy(timestep) if config.ensemble == "nve" and held else None
