"""What every rank of test_equal_to_ase.py does: cases by name, one line of errors for each."""

import numpy as np
from ase.build import bulk, molecule
from models.cases import BACKBONE, ELEMENTS, make_model, rattled
from models.cases import slab as thin_slab
from models.models_on_ranks import IONS, smoothed

from interfaces.lammps.engines import collect, guarded, make_lammps, report, restricted, single_point
from scfmlip.interfaces.lammps import attach
from scfmlip.interfaces.lammps.states import AtomStates
from scfmlip.scf import SolverMemory


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


def slab():
    """Al with OH on top, thick vacuum above."""
    atoms = thin_slab().repeat((2, 1, 1))
    atoms.cell[2] = [0, 0, 24.0]
    atoms.info.clear()
    return atoms


def cluster():
    """Three waters in the lower part of a box."""
    atoms = molecule("H2O")
    for shift in ((3.1, 0.4, 2.2), (0.3, 2.9, 5.0)):
        other = molecule("H2O")
        other.positions += shift
        atoms += other
    atoms = rattled(atoms, 5)
    atoms.set_cell([12.0, 13.0, 16.0])
    atoms.positions += 2.5 - atoms.positions.min(0)
    return atoms


# fast atoms, and lists so short that they change ranks
HOT = (
    "neighbor 0.3 bin",
    "neigh_modify delay 0 every 1 check yes",
    "velocity all create 3000 7 loop geom",
    "timestep 0.001",
    "fix nve all nve",
)
NPT = (*HOT[:4], "fix npt all npt temp 300 300 0.1 tri 0 0 0.1 flip no")


def case(name, atoms, **options):
    """One case of a model by name, with the inputs it wants."""
    model = make_model(name)
    info = {}
    if "charge" in model.required_info:
        info["charge"] = options.pop("charge", 0.0)
    if "spin" in model.required_info:
        info["spin"] = 1
    if "fermi_level" in model.required_info:
        info["fermi_level"] = 0.3
    if options.get("mesh"):
        from scfmlip.interfaces.lammps.attach import with_mesh

        model, _ = with_mesh(model), options.pop("mesh")
    if "smooth" in options:
        model = smoothed(model, options.pop("smooth"))
    given = dict(info)
    ions = options.pop("outside", {})
    info.update(ions)
    given.update(ions)
    if "counter_charge" in options:
        info["counter_charge"] = options["counter_charge"]
    return single_point(model, atoms, ELEMENTS, info=info, **given, **options)


def foreign(name):
    """A model of mace-torch's, as it is; ``name`` of a block of its interactions, or PolarMACE."""
    from mace_torch.mace_models import mace_model
    from mace_torch.polar_models import polar_model

    atoms = rattled(bulk("SiO", "rocksalt", a=4.4).repeat((2, 2, 2)), 3)
    info = {}
    if name == "PolarMACE":
        model, info = polar_model(elements=(1, 8, 14)), {"charge": 1.0, "spin": 2}
    else:
        model = mace_model(name)
    return single_point(model, atoms, ("Si", "O"), info=info, **info)


def les(name):
    """MACELES's latent charges; ``name`` of a system. Those of slabs depend on a cell that is padded."""
    from scfmlip.models import build

    config = {
        "elements": ELEMENTS,
        "backbone": BACKBONE,
        "density": {"l_max": 0},
        "rule": {"name": "latent", "compat": "les", "sigma": 1.0},
        "dtype": "float64",
    }
    return single_point(build(config), {"crystal": crystal, "slab": slab}[name](), ELEMENTS)


EMBEDDED = {
    "total_charge": {"type": "categorical", "per": "graph", "num_classes": 21, "offset": 10, "emb_dim": 4},
    "total_spin": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
}


def embedding_model(specs=EMBEDDED):
    """A network that embeds charge and spin of the whole system."""
    from scfmlip.models import build

    backbone = {**BACKBONE, "options": {"embedding_specs": specs}}
    return build({"elements": ELEMENTS, "backbone": backbone, "rule": "local", "dtype": "float64", "seed": 5})


def embedded(name):
    """Such a network; ``name`` of a system."""
    atoms = {"crystal": crystal, "vacuum": vacuum}[name]()
    info = {"charge": 1, "spin": 2}
    return single_point(embedding_model(), atoms, ELEMENTS, info=info, **info)


def outside(name, atoms, **options):
    """Charges outside the model; the forces on them are those of one process too."""
    found = case(name, atoms, outside=IONS, **options)
    assert found.get("external_forces", 1.0) < 1e-9
    return found


def handed_on(name):
    """Mean iterations of a step with and without what solves hand on, while atoms change ranks."""
    found, moves, keep, hotter = {}, [], AtomStates.start, "velocity all create 30000 7 loop geom"
    move = SolverMemory.moved
    SolverMemory.moved = lambda self, *given: (moves.append(len(self.spaces)), move(self, *given))[1]
    for label in ("with", "without"):
        if label == "without":
            AtomStates.start = lambda *given: {k: v for k, v in keep(*given).items() if k != "solver_memory"}
        lmp = make_lammps(restricted(crystal()), ELEMENTS, commands=(*HOT, hotter))
        attached = attach(lmp, make_model(name), elements=ELEMENTS, charge=0.0)
        lmp.command("run 0")
        counts = []
        for _ in range(40):
            lmp.command("run 1 pre no post no")
            counts.append(attached.results["scf_iterations"])
        found[label] = float(np.mean(counts))
        found[f"charges_{label}"] = collect(lmp, attached)["q"]
        lmp.close()
    SolverMemory.moved, AtomStates.start = move, keep
    differ = float(np.abs(found.pop("charges_with") - found.pop("charges_without")).max())
    return {**found, "charges_differ": differ, "moves": len(moves), "spaces": max(moves, default=0)}


def reductions(name):
    """Of one step, without those of a new list of neighbours."""
    lmp = make_lammps(restricted(crystal()), ELEMENTS, commands=("fix nve all nve",))
    attached = attach(lmp, make_model(name), elements=ELEMENTS)
    lmp.command("run 1")
    before = attached.communicator.traffic.copy()
    lmp.command("run 4 pre no")
    counted = attached.communicator.traffic.since(before).reductions / 4
    lmp.close()
    return {"reductions": counted}


CASES = {
    "les": les,
    "handed_on": handed_on,
    "reductions": reductions,
    "foreign": foreign,
    "embedded": embedded,
    "triclinic": lambda name: case(name, crystal()),
    "charged": lambda name: case(name, crystal(), charge=0.7),
    "empty": lambda name: case(name, vacuum(), processors="1 1 *"),
    "slab": lambda name: case(name, slab()),
    "charged_slab": lambda name: case(name, slab(), charge=0.3, counter_charge=(12.0, 13.0)),
    "npt": lambda name: case(name, crystal(), steps=30, commands=NPT),
    "moved_empty": lambda name: case(name, vacuum(), processors="1 1 *", steps=20, commands=HOT),
    "mesh": lambda name: case(name, crystal(), mesh=True),
    "mesh_slab": lambda name: case(name, slab(), mesh=True),
    "outside": lambda name: outside(name, crystal()),
    "outside_slab": lambda name: outside(name, slab()),
    "outside_empty": lambda name: outside(name, vacuum(), processors="1 1 *"),
    "outside_narrow": lambda name: outside(name, vacuum(), processors="1 1 *", smooth=1.7),
    "cluster": lambda name: case(name, cluster(), processors="1 1 *"),
    "cluster_moved": lambda name: case(name, cluster(), steps=20, commands=HOT),
    "cluster_mesh": lambda name: case(name, cluster(), mesh=True),
    "outside_cluster": lambda name: outside(name, cluster(), processors="1 1 *"),
    "narrow": lambda name: case(name, crystal(), smooth=1.7),
    "narrow_slab": lambda name: case(name, slab(), smooth=1.7),
    "narrow_empty": lambda name: case(name, vacuum(), processors="1 1 *", smooth=1.7),
    "narrow_moved": lambda name: case(name, crystal(), smooth=1.7, steps=100, commands=HOT),
    "float32": lambda name: case(name, crystal(), dtype="float32"),
    "moved": lambda name: case(name, crystal(), steps=100, commands=HOT),
}


def main(arguments):
    for argument in arguments:
        case, _, model = argument.partition(":")
        report({"case": argument, **CASES[case](model)})


if __name__ == "__main__":
    guarded(main)
