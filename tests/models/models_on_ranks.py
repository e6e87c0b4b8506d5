"""What every rank of test_ranks.py does: models of atoms that ranks share, without an engine."""

import copy
import dataclasses
import sys

import numpy as np
import torch
from ase.build import bulk, molecule
from distributed.collectives_on_ranks import communicator, owners

from models.cases import ELEMENTS, batch, make_model, rattled
from models.cases import slab as thin_slab
from scfmlip.distributed import build_halo
from scfmlip.mace_torch.domains import DomainEdges, make_domain_batch
from scfmlip.neighbours import neighbour_pairs

# charges outside the model, more than there are ranks
IONS = {
    "external_charges": [1.0, -0.6, 0.3],
    "external_positions": [[2.1, 0.3, 5.2], [1.0, 1.4, 6.1], [0.2, 3.0, 7.0]],
}
ATOMS = ("forces", "charges", "electrostatic_potential", "born_charges")
WHOLE = ("energy", "virials", "dipole", "polarizability", "external_forces")


def crystal():
    atoms = rattled(bulk("AlO", "rocksalt", a=4.2).repeat((2, 2, 1)), 3)
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    return atoms


def cluster():
    atoms = molecule("H2O")
    for shift in ((3.1, 0.4, 2.2), (0.3, 2.9, 5.0)):
        other = molecule("H2O")
        other.positions += shift
        atoms += other
    return rattled(atoms, 5)


SYSTEMS = {"crystal": crystal, "slab": lambda: thin_slab().repeat((2, 1, 1)), "cluster": cluster}


def smoothed(model, width):
    """The same model, whose waves are those of wider Gaussians, and neighbours add the rest."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.rule = copy.copy(model.rule)
    other.rule.coulomb = dataclasses.replace(model.rule.coulomb, smooth=width)
    return other


def shared(model, atoms, ranks, mine, inputs):
    """What this rank gives a model: own atoms, their edges, and ghosts."""
    pairs, images = neighbour_pairs(atoms.positions, atoms.cell.array, atoms.pbc, float(model.r_max))
    keep = np.isin(pairs[1], mine)
    (sender, receiver), images = pairs[:, keep], images[keep]
    ghosts = np.setdiff1d(sender, mine)
    halo, ghost = build_halo(ranks, torch.tensor(mine), torch.tensor(ghosts))
    row, elements = np.full(len(atoms), -1), [list(ELEMENTS).index(s) for s in atoms.symbols]
    row[mine], row[ghosts] = np.arange(len(mine)), len(mine) + ghost.numpy()
    species = np.zeros(halo.n_all, dtype=np.int64)
    species[row[row >= 0]] = np.array(elements)[row >= 0]
    edges = DomainEdges(torch.tensor(np.stack((row[sender], row[receiver]))), torch.tensor(images))
    place = atoms.cell.array, np.array(atoms.pbc), edges, halo, inputs
    return make_domain_batch(model, torch.tensor(atoms.positions[mine]), torch.tensor(species), *place)


def check(ranks, name, where, outside=False, smooth=None, plain=False):
    """All outputs are those of one process; with three ranks the last has no atoms."""
    model, atoms = make_model(name), SYSTEMS[where]()
    model = model if smooth is None else smoothed(model, smooth)
    atoms.info = {"charge": 0.0, "spin": 1, **(IONS if outside else {})}
    potential = model.has_charges and not plain
    wanted = {"compute_virials": True, "compute_potential": potential, "compute_response": potential}
    whole = batch(model, [atoms])
    want = model(whole, **wanted)
    mine = torch.nonzero(owners(len(atoms), ranks, ranks.size > 2) == ranks.rank).flatten().numpy()
    inputs = {"total_charge": 0.0, "total_spin": 1, "fermi_level": 0.3, **(IONS if outside else {})}
    given, domain = shared(model, atoms, ranks, mine, inputs)
    before = ranks.traffic.copy()
    got = model(given, domain=domain, **wanted)
    sent = ranks.traffic.since(before)
    where_of = {**dict.fromkeys(ATOMS, mine), **dict.fromkeys(WHOLE, slice(None))}
    for key, place in where_of.items():
        if want.get(key) is not None:
            scale = max(1.0, float(want[key].abs().max()))
            found = (got[key] - want[key][place]).abs()
            assert not len(found) or float(found.max()) < 1e-9 * scale, (name, where, key, found)
    return sent


def main(arguments):
    ranks = communicator("mpi")
    for argument in arguments:
        name, where, *options = argument.split(":")
        sent = check(
            ranks, name, where, "outside" in options, 1.7 if "narrow" in options else None, "plain" in options
        )
        if ranks.rank == 0:
            print(f"{argument}: {sent.reductions} reductions, {sent.exchanges} exchanges", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(sys.argv[1:])
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        communicator("mpi").abort()
