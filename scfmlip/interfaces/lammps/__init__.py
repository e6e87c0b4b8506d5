"""
LAMMPS runs every model of ours and accelerated mace-torch models, over any number of MPI ranks.

LAMMPS owns atoms, ghosts, neighbour lists and the integrator; each rank evaluates its own atoms together with
the others through ``fix external``. Electrostatics is of all atoms, exact, whatever the number of ranks.
"""

from .attach import Attached, attach, start_lammps
from .script import run_script

__all__ = ["Attached", "attach", "run_script", "start_lammps"]
