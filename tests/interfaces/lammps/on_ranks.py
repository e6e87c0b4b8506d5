"""What every rank of test_lammps.py does: cases by name, one line of errors for each."""

import numpy as np
from ase.build import bulk
from models.cases import ELEMENTS, make_model, rattled

from interfaces.lammps.engines import guarded, report, single_point
from scfmlip.distributed import SingleProcess


def crystal(n=2):
    """AlO in a triclinic cell."""
    atoms = rattled(bulk("AlO", "rocksalt", a=4.2).repeat((n, n, n)), 3)
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    return atoms


def vacuum():
    """A crystal in a box three times as high: two in three ranks along z own nothing."""
    atoms = rattled(bulk("AlO", "rocksalt", a=4.2, cubic=True), 4)
    atoms.cell[2] *= 3
    return atoms


CASES = {
    "triclinic": lambda name: single_point(make_model(name), crystal(), ELEMENTS),
    "empty": lambda name: single_point(make_model(name), vacuum(), ELEMENTS, "1 1 *"),
}


def main(arguments):
    for argument in arguments:
        case, _, model = argument.partition(":")
        report({"case": argument, **CASES[case](model)})


if __name__ == "__main__":
    assert SingleProcess().size == 1
    guarded(main)
