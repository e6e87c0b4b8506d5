"""``scfmlip lammps``: a LAMMPS input file with a model, on any number of MPI ranks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import WRONG_INPUT

# seconds that ranks wait for others to fail as they did
_PATIENCE = 10.0


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "lammps",
        help="a LAMMPS input file with a model, over MPI ranks",
        description="Run a LAMMPS input file with a model that drives it: mpiexec -n 4 scfmlip lammps in.lmp "
        "--model m.safetensors --elements Mg O. The input has units metal, makes the box and the atoms, and "
        "needs no pair_style; the model comes in before the first run or minimize, or at a line '# scfmlip "
        "attach'. Electrostatics is of all atoms and exact on any number of ranks.",
    )
    parser.add_argument("input", type=Path, help="LAMMPS input file")
    parser.add_argument("--model", required=True, type=Path, help="*.safetensors, or mace-torch's *.model")
    parser.add_argument("--elements", nargs="+", help="element of each atom type; by masses if left out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (one GPU for each rank) or auto")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="the model's if left out")
    parser.add_argument("--head", help="of a model with several")
    parser.add_argument("--charge", type=float, help="total charge, e")
    parser.add_argument("--spin", type=float, help="multiplicity 2S+1")
    parser.add_argument("--fermi-level", type=float, help="constant potential: level of the electrons, eV")
    parser.add_argument(
        "--external-field", type=float, nargs=3, metavar=("X", "Y", "Z"), help="V/angstrom, mace's sign"
    )
    parser.add_argument(
        "--counter-charge", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of a slab, angstrom"
    )
    parser.add_argument(
        "--external-charges",
        type=Path,
        metavar="FILE",
        help="charges outside the model, which stay where they are: a text file with lines 'q x y z', e and "
        "angstrom",
    )
    parser.add_argument("--potential", action="store_true", help="also compute d_scfmlip_potential")
    parser.add_argument(
        "--mesh", action="store_true", help="electrostatics through a mesh, for large systems"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read mace-torch's pickle")
    parser.add_argument("--log", default="log.lammps", help="LAMMPS's log file, or none")
    parser.add_argument(
        "--var", nargs="+", action="append", default=[], metavar="NAME VALUE", help="a variable of the input"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command, on every rank."""
    ranks = _ranks()
    try:
        return _run(arguments, ranks.rank == 0)
    except Exception as error:
        # what all have met the first one says; where others go on and wait, all are ended
        if not ranks.all_arrive(_PATIENCE):
            print(f"scfmlip lammps, rank {ranks.rank}: {error}", flush=True)
            ranks.abort()
        if ranks.rank == 0:
            raise
        return 2 if isinstance(error, WRONG_INPUT) else 1


def _ranks() -> Any:
    """MPI's, where mpi4py is there."""
    from ..distributed import SingleProcess
    from ..distributed.mpi import MpiCommunicator

    try:
        return MpiCommunicator()
    except ImportError:
        return SingleProcess()


def _external_charges(file: Path) -> NDArray[np.float64]:
    """``[n, 4]`` charges and positions of a text file."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of external charges {file}")
    try:
        table = np.loadtxt(file, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; every line must hold numbers 'q x y z'") from None
    if table.shape[1:] != (4,) or not np.isfinite(table).all():
        raise ValueError(f"{file} must hold lines of four finite numbers, 'q x y z', e and angstrom")
    return table


def _run(arguments: argparse.Namespace, first: bool) -> int:
    if not arguments.input.is_file():
        raise FileNotFoundError(f"there is no LAMMPS input {arguments.input}")
    if not arguments.model.is_file():
        raise FileNotFoundError(f"there is no model file {arguments.model}")
    from ..interfaces.lammps import run_script, start_lammps

    variables = [word for given in arguments.var for word in ("-var", *given)]
    lmp = start_lammps(["-log", arguments.log, *variables])
    names = ("elements", "device", "dtype", "head", "charge", "spin", "fermi_level", "external_field")
    names = (*names, "counter_charge", "potential", "mesh", "trust_pickle")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.external_charges is not None:
        table = _external_charges(arguments.external_charges)
        options.update(external_charges=table[:, 0], external_positions=table[:, 1:])
    attached = run_script(lmp, arguments.input, arguments.model, **options)
    if first:
        force = attached.force
        print(f"scfmlip: {force.steps} evaluations, {force.seconds:.1f} s in the model, {attached.traffic()}")
    lmp.close()
    return 0
