"""From frames to batches and back: mace-torch's layout, right stresses, clear refusals, no global state."""

import copy
import threading
import warnings
from functools import cache

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from ase import Atoms
from ase.build import bulk, fcc111, molecule
from scipy.spatial.transform import Rotation

import scfmlip
from mace_torch.les_models import les_model
from mace_torch.mace_models import mace_batch, mace_model
from mace_torch.polar_models import batch_of, shared_polar_model
from scfmlip.ase import Calculator
from scfmlip.mace_torch.batches import check_frame, make_batch, split_outputs
from scfmlip.mace_torch.building import default_dtype, running
from scfmlip.mace_torch.graphs import collate, make_graph

F64 = torch.float64
POLAR = {"elements": (1, 8, 14), "hidden_irreps": "4x0e + 4x1o"}


def slab():
    """Silicon and hydrogen, three layers, rattled."""
    atoms = fcc111("Si", (1, 2, 2), a=4.6, vacuum=6.0)
    atoms += Atoms("HO", [atoms.positions[-2] + [0.1, 0.0, 1.5], atoms.positions[-1] + [0.0, 0.2, 1.8]])
    atoms.pbc = (True, True, False)
    atoms.rattle(0.1, seed=1)
    atoms.info.update(charge=0, spin=1)
    return atoms


def triclinic():
    atoms = bulk("SiO", "rocksalt", a=4.4)
    atoms.rattle(0.1, seed=2)
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    atoms.info.update(charge=0, spin=1)
    return atoms


def water():
    atoms = molecule("H2O")
    atoms.info.update(charge=0, spin=1)
    return atoms


def latent():
    """A MACELES that knows silicon."""
    torch.set_default_dtype(F64)
    model = les_model()
    model.atomic_numbers = torch.tensor([1, 8, 14])
    torch.set_default_dtype(torch.float32)
    return model


def turned(atoms, seed=0):
    """The same system seen from elsewhere, and the rotation."""
    matrix = Rotation.random(random_state=seed).as_matrix()
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ matrix.T)
    other.positions = atoms.positions @ matrix.T
    return other, torch.tensor(matrix)


def made(model, *frames, **options):
    return make_batch(model, list(frames), torch.device("cpu"), next(model.parameters()).dtype, **options)


def strain_derivative(energy, atoms, step=1e-4):
    """``[3, 3]`` fourth-order differences of ``energy(atoms)`` by a strain of atoms and cell, eV."""
    found = np.zeros((3, 3))
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        values = []
        for k in (1, -1, 2, -2):
            strain = np.eye(3)
            strain[i, j] += 0.5 * k * step
            strain[j, i] += 0.5 * k * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain)
            strained.positions = atoms.positions @ strain
            values.append(energy(strained))
        found[i, j] = found[j, i] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("frames", [[triclinic], [water], [triclinic, water, triclinic]])
def test_the_layout_is_mace_torchs(frames, dtype):
    model = mace_model()
    frames = [frame() for frame in frames]
    theirs = mace_batch(frames, model, dtype)
    ours = collate([make_graph(a, (1, 8, 14), 3.5, dtype, pad_cell=True) for a in frames])
    assert set(theirs) <= set(ours)
    assert set(ours) - set(theirs) == {"volume_share", "slab_axis"}
    order = []
    for batch in (theirs, ours):
        columns = [*batch["edge_index"].tolist(), *batch["unit_shifts"].T.tolist()]
        order.append(sorted(range(len(columns[0])), key=lambda e: [c[e] for c in columns]))
    moved = ("cell", "rcell", "volume") if any(not a.pbc.any() for a in frames) else ()  # around the molecule
    for key, value in theirs.items():
        got = ours[key]
        if not isinstance(value, torch.Tensor):
            assert got == value, key
            continue
        assert (got.dtype, got.shape) == (value.dtype, value.shape), key
        if key in ("edge_index", "shifts", "unit_shifts"):
            axis = 1 if key == "edge_index" else 0
            value = value.index_select(axis, torch.tensor(order[0]))
            got = got.index_select(axis, torch.tensor(order[1]))
        if key not in moved and not key.endswith("_weight"):
            torch.testing.assert_close(got, value, rtol=1e-6, atol=1e-6, msg=key)
        if key.endswith("_weight"):
            assert not got.any(), key  # nothing here is a label


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("kind", ["mace", "polar", "equilibrated"])
def test_slabs_are_the_same_from_every_side(kind, order):
    """Turned by any angle, with rows in any order, with or without an open vector."""
    model = {
        "mace": lambda: scfmlip.accelerate(mace_model()),
        "polar": lambda: scfmlip.accelerate(shared_polar_model(**POLAR)),
        "equilibrated": lambda: ours("equilibrated", "charge"),
    }[kind]()
    atoms = slab()
    want = model(made(model, atoms), compute_stress=True)
    other, matrix = turned(atoms)
    other.set_cell(other.cell.array[order])
    other.pbc = atoms.pbc[order]
    got = model(made(model, other), compute_stress=True)
    torch.testing.assert_close(got["energy"], want["energy"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got["forces"], want["forces"] @ matrix.T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(got["stress"], matrix @ want["stress"] @ matrix.T, rtol=1e-7, atol=1e-9)
    upright = atoms.copy()
    upright.set_cell(atoms.cell.array[order])
    upright.pbc = atoms.pbc[order]
    got = model(made(model, upright))
    torch.testing.assert_close(got["energy"], want["energy"], rtol=1e-10, atol=1e-10)


@cache
def ours(rule, constraint, l_max=0, heads=("Default",)):
    """A small model of the design space in float64, shared: do not change it."""
    backbone = {"r_max": 3.5, "hidden_irreps": "4x0e+4x1o", "max_ell": 2, "correlation": 2, "num_bessel": 4}
    backbone |= {"radial_MLP": [8], "avg_num_neighbors": 8.0, "heads": heads}
    cutoff = {"kspace_cutoff_factor": 1.5} if rule == "recursion" else {}
    return scfmlip.models.build(
        {
            "elements": ["H", "O", "Si"],
            "backbone": backbone | {"shift": [float(i) for i in range(len(heads))]},
            "density": {"l_max": l_max, "sigma": 1.2, "tolerance": 1e-10} | cutoff,
            "rule": rule,
            "constraint": constraint,
            "dtype": "float64",
        }
    )


@pytest.mark.parametrize("system", [slab, triclinic])
@pytest.mark.parametrize("kind", ["mace", "polar", "les", "equilibrated", "recursion"])
def test_stress_is_that_of_the_frames_own_volume(kind, system):
    """All nine components, at the batch's door and in ASE; mace's long cells decide no volume."""
    model = {
        "mace": lambda: scfmlip.accelerate(mace_model()),
        "polar": lambda: scfmlip.accelerate(shared_polar_model(**POLAR)),
        "les": lambda: scfmlip.accelerate(latent()),
        "equilibrated": lambda: ours("equilibrated", "charge", 1),
        "recursion": lambda: ours("recursion", "charge_spin", 1),
    }[kind]()
    atoms = system()
    given = made(model, atoms)
    stress = model(dict(given), compute_stress=True)["stress"][0].detach().numpy()

    def energy(strained):
        moved = made(model, strained)
        # the reference's cell is strained too, not made anew
        change = np.linalg.solve(atoms.cell.array, strained.cell.array)
        moved["cell"] = (given["cell"].view(3, 3) @ torch.tensor(change)).reshape(3, 3)
        moved["rcell"] = 2 * torch.pi * torch.linalg.inv(moved["cell"].mT)
        moved["volume"] = torch.linalg.det(moved["cell"])[None]
        return model(moved, compute_force=False)["energy"].item()

    want = strain_derivative(energy, atoms) / atoms.get_volume()
    np.testing.assert_allclose(stress, want, rtol=1e-4, atol=2e-6 * np.abs(want).max())  # finite differences
    atoms.calc = Calculator(model)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-9, atol=1e-12)


def test_no_volume_no_stress():
    model = scfmlip.accelerate(mace_model())
    atoms = water()
    out = model(made(model, atoms, triclinic()), compute_stress=True)
    assert not out["stress"][0].any()
    assert out["stress"][1].any()
    assert "stress" not in split_outputs(out, [atoms, triclinic()])[0]


@pytest.mark.parametrize("kind", ["mace", "polar"])
def test_a_molecule_far_from_the_origin(kind):
    model = scfmlip.accelerate(
        mace_model() if kind == "mace" else shared_polar_model(hidden_irreps="4x0e + 4x1o")
    )
    near, far = water(), water()
    far.positions += 1e5
    here, there = (model(made(model, atoms)) for atoms in (near, far))
    torch.testing.assert_close(there["energy"], here["energy"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there["forces"], here["forces"], rtol=1e-6, atol=1e-8)
    assert made(model, far)["cell"].abs().max() < 50
    far.positions += 1e4
    with pytest.warns(UserWarning, match="where float32 rounds positions by"):
        make_batch(model, [far], torch.device("cpu"), torch.float32)


def test_the_reference_runs_on_our_batches():
    model = shared_polar_model(hidden_irreps="4x0e + 4x1o")
    fast = scfmlip.accelerate(model)
    frames = [triclinic(), triclinic()]
    for atoms in frames:
        atoms.numbers[atoms.numbers == 14] = 6
    want = model(batch_of(frames, model))
    for one in (model, fast):
        got = one(made(one, *frames))
        torch.testing.assert_close(got["energy"], want["energy"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got["forces"], want["forces"], rtol=1e-8, atol=1e-9)


def test_the_reference_refuses_slabs_that_it_takes_for_crystals():
    model = shared_polar_model(**POLAR)
    check_frame(model, slab(), "it")
    other, _ = turned(slab())
    for wrong in (other, slab()[:]):
        if wrong is not other:
            wrong.set_cell(wrong.cell.array[[2, 0, 1]])
            wrong.pbc = (False, True, True)
        with pytest.raises(
            ValueError, match="it is a slab whose normal is not z, or whose open vector is not"
        ):
            check_frame(model, wrong, "it")
        check_frame(scfmlip.accelerate(model), wrong, "it")


@pytest.mark.parametrize("key", ["total_charge", "REF_charge", "net_charge"])
def test_every_name_of_the_charge_is_read(key):
    model = ours("equilibrated", "charge")
    atoms = water()
    atoms.info = {key: 2}
    assert made(model, atoms)["total_charge"].tolist() == [2.0]
    atoms.info["charge"] = 1
    with pytest.raises(ValueError, match=r"frame 0: .* are both the total charge"):
        made(model, atoms)


def test_inputs_that_networks_embed_reach_a_converted_model():
    """A MACE trained on charges and spins (as the OMol ones) asks for them after from_mace too."""
    specs = {
        "total_charge": {
            "type": "categorical",
            "per": "graph",
            "num_classes": 21,
            "offset": 10,
            "emb_dim": 4,
        },
        "total_spin": {"type": "categorical", "per": "graph", "num_classes": 10, "emb_dim": 4},
        "elec_temp": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
    }
    model = ours("short_range", "none")
    config = scfmlip.models.config_to_dict(model.config)
    config["backbone"]["options"] = {"embedding_specs": specs}
    model = scfmlip.models.build(config)
    original = scfmlip.models.to_mace(model)
    for one in (model, scfmlip.models.from_mace(original), original):
        atoms = water()
        atoms.info = {"charge": 1, "spin": 2, "elec_temp": 0.5}
        out = one(made(one, atoms))["energy"].item()
        atoms.info |= {"charge": 0, "spin": 1}
        assert abs(one(made(one, atoms))["energy"].item() - out) > 1e-4
        atoms.info["elec_temp"] = 0.1
        assert abs(one(made(one, atoms))["energy"].item() - out) > 1e-4
        for key in ("charge", "spin", "elec_temp"):
            less = atoms.copy()
            del less.info[key]
            with pytest.raises(ValueError, match=rf"lacks atoms.info\['{key}'\]"):
                made(one, less)


def test_heads_of_frames_and_of_the_argument():
    model = ours("short_range", "none", heads=("pbe", "scan"))
    frames = [water(), water()]
    frames[0].info["head"], frames[1].info["head"] = "scan", "pbe"
    assert made(model, *frames)["head"].tolist() == [1, 0]
    assert made(model, *frames, head="scan")["head"].tolist() == [1, 1]
    frames[1].info["head"] = "r2scan"
    with pytest.raises(ValueError, match="second: the model has no head 'r2scan'"):
        made(model, *frames, names=["first", "second"])
    del frames[1].info["head"]
    with pytest.raises(ValueError, match="frame 1: the model has the heads 'pbe', 'scan'"):
        made(model, *frames)
    with pytest.raises(ValueError, match="no head 'PBE'; it has 'pbe', 'scan'; did you mean 'pbe'"):
        Calculator(model, head="PBE")
    energies = []
    for head in ("pbe", "scan"):
        frames[0].info["head"] = head
        frames[0].calc = frames[0].calc or Calculator(model)
        energies.append(frames[0].get_potential_energy())
    assert abs(energies[1] - energies[0]) > 1  # the head is no cached thing


def test_what_cannot_be_put_together():
    model = ours("equilibrated", "charge")
    with pytest.raises(ValueError, match="at least one frame"):
        made(model)
    one, two = slab(), slab()
    two.info["counter_charge"] = (20.0, 21.0)
    with pytest.raises(ValueError, match=r"only systems \[1\] of 2 have counter_charge"):
        made(model, one, two)
    two.info["counter_charge"] = "above"
    with pytest.raises(ValueError, match=r"'counter_charge'.* must be .lower, upper., angstrom, got 'above'"):
        made(model, two)
    polar = shared_polar_model(**POLAR)
    with pytest.raises(ValueError, match=r"has counter charge in .*, which a PolarMACE does not support"):
        check_frame(polar, two, "it")
    one.info["external_field"] = [0, 0, 0.1]
    with pytest.warns(UserWarning, match=r"external_field.*no effect on this model without"):
        made(ours("short_range", "none"), one)
    one.info["efield"] = one.info.pop("external_field")
    with pytest.warns(UserWarning, match="has efield in atoms.info, which is not read"):
        made(model, one)
    one.cell[0, 0] = np.nan
    with pytest.raises(ValueError, match="it has NaN or infinite lattice vectors"):
        check_frame(model, one, "it")
    two = water()
    two.positions[2] = two.positions[1]
    with pytest.raises(ValueError, match="frame 0: atoms 1 and 2 are at the same position"):
        made(model, two)
    given = made(model, water())
    with pytest.raises(TypeError, match="pbc of a batch is bool"):
        model(given | {"pbc": given["pbc"].double()})
    empty = {
        k: v[:0] if v.ndim and len(v) == 3 else v for k, v in given.items() if isinstance(v, torch.Tensor)
    }
    with pytest.raises(ValueError, match="the batch has no atoms"):
        model(empty | {"ptr": torch.tensor([0, 0]), "pbc": given["pbc"]})


@pytest.mark.parametrize(
    "info",
    [
        {"charge": "one"},
        {"charge": [1, 2]},
        {"charge": None},
        {"charge": 0, "external_field": [0, 0, "x"]},
        {"charge": 0, "external_charges": [1.0, 2.0], "external_positions": [[0, 0, 5.0]]},
        {"charge": 0, "external_charges": ["a"], "external_positions": [[0, 0, 5.0]]},
    ],
    ids=str,
)
def test_errors_leave_the_default_dtype(info):
    model = ours("equilibrated", "charge")
    atoms = water()
    atoms.info = info
    with pytest.raises(ValueError, match=r"atoms.info\['(charge|external)"):
        made(model, atoms)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("change", [{"backbone": {"interaction": "Foo"}}, {"constraint": "fermi_level"}])
def test_builds_that_fail_leave_the_default_dtype(change):
    with pytest.raises(ValueError, match=r"Foo|does not take"):
        scfmlip.models.build({"elements": ["H"], "dtype": "float64", "rule": "local"} | change)
    assert torch.get_default_dtype() == torch.float32


def test_builders_take_turns():
    """The default dtype is the process's: a second thread waits, and evaluations do."""
    seen = []

    def build():
        with default_dtype(F64):
            seen.append(torch.get_default_dtype())

    def evaluate():
        with running(scfmlip.accelerate(mace_model())):
            seen.append(torch.get_default_dtype())

    threads = [threading.Thread(target=target) for target in (build, evaluate)]
    try:
        with default_dtype(torch.float16), default_dtype(torch.float16):
            for thread in threads:
                thread.start()
                thread.join(0.2)
            assert not seen
            raise RuntimeError("on purpose")
    except RuntimeError:
        pass
    for thread in threads:
        thread.join()
    assert set(seen) == {F64, torch.float32}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", ["mace", "polar", "les", "equilibrated", "latent", "fixed_point"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_number_depends_on_the_default_dtype(kind, dtype):
    """Not by one bit, whatever the process is set to, nor when a model is accelerated."""
    foreign = {"mace": mace_model, "polar": lambda: shared_polar_model(**POLAR), "les": latent}
    if kind in foreign:
        model = copy.deepcopy(foreign[kind]()).to(dtype)
    else:
        model = copy.deepcopy(ours(kind, "none" if kind == "latent" else "charge")).to(dtype)
    outs = []
    for default in (torch.float32, F64, torch.bfloat16):
        torch.set_default_dtype(default)
        one = scfmlip.accelerate(model) if kind in foreign else copy.deepcopy(model)
        outs.append(one(made(one, triclinic()), compute_stress=True))
        assert torch.get_default_dtype() == default
    for out in outs[1:]:
        for key, value in outs[0].items():
            if isinstance(value, torch.Tensor):
                assert out[key].dtype == value.dtype, key
                torch.testing.assert_close(out[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_threads_with_calculators_of_their_own():
    """Four of them, in both precisions, while a fifth builds models."""
    models = {"mace": mace_model(), "equilibrated": ours("equilibrated", "charge")}
    jobs = [(kind, dtype) for kind in models for dtype in ("float64", "float32")]
    frames = [water() for _ in range(5)]
    for i, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=i)

    def evaluate(kind, dtype, rounds):
        calc, found = Calculator(models[kind], dtype=dtype, extrapolation=None), []
        for _ in range(rounds):
            for atoms in frames:
                found.append((calc.get_property("energy", atoms), calc.get_property("forces", atoms)))
        return found

    want = {job: evaluate(*job, 1) for job in jobs}
    got, errors = {}, []

    def run(job):
        try:
            got[job] = evaluate(*job, 4)
        except Exception as error:
            errors.append(error)

    def build():
        config = scfmlip.models.config_to_dict(models["equilibrated"].config)
        for dtype in ("float64", "float32"):
            try:
                scfmlip.models.build({**config, "dtype": dtype})
            except Exception as error:
                errors.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
        threads.append(threading.Thread(target=build))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    for job in jobs:
        for i, (energy, forces) in enumerate(got[job]):
            assert energy == want[job][i % len(frames)][0]
            np.testing.assert_array_equal(forces, want[job][i % len(frames)][1])
    assert torch.get_default_dtype() == torch.float32
