"""Frames, labels and what a model learns about them before it is trained."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from scfmlip.structures import FileError
from scfmlip.training import config_from_dict, prepare
from scfmlip.training.data import EpochBatches, make_loader, read_sets
from scfmlip.training.frames import counts, is_isolated, iterate, labelled, read_frames
from scfmlip.training.processes import Processes

from .problems import ENERGIES, configuration, options, water_frames

ALONE = Processes(0, 1, torch.device("cpu"))


def prepared(folder, frames=None, **changes):
    return prepare(config_from_dict(options(folder, frames=frames, **changes)), ALONE)


def first_batch(graphs):
    return next(iter(make_loader(graphs, EpochBatches(len(graphs), len(graphs), None))))


def data(folder, **changes):
    return {"train": str(folder / "frames.xyz"), "valid_fraction": 0.0} | changes


def test_labels_reach_the_batch(tmp_path):
    frames = water_frames(4)
    del frames[1].arrays["REF_forces"], frames[1].info["REF_dipole"]
    frames[2].info["config_forces_weight"] = 3.0
    frames[2].info["config_weight"] = 0.5
    _, graphs, _ = prepared(tmp_path, frames, data=data(tmp_path))
    batch = first_batch(graphs["train"])
    assert batch["forces_weight"].tolist() == [1, 0, 3, 1]
    assert batch["weight"].tolist() == [1, 1, 0.5, 1]
    assert batch["charges_weight"].tolist() == [1, 1, 1, 1]
    assert batch["stress_weight"].tolist() == [0, 0, 0, 0]
    assert batch["fermi_level_weight"].tolist() == [0, 0, 0, 0]
    assert batch["dipole_weight"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    np.testing.assert_allclose(batch["forces"][-6:], frames[3].arrays["REF_forces"])
    # a frame that only keeps a process company
    assert float(graphs["train"][0, False].weight) == float(graphs["train"][0, False].counts) == 0
    assert float(graphs["train"][0, True].weight) == float(graphs["train"][0, True].counts) == 1
    # charges stand in for the density
    np.testing.assert_allclose(batch["density_coefficients"][:3, 0], frames[0].arrays["REF_charges"])
    assert batch["density_coefficients_weight"].tolist() == [0, 0, 0, 0]


def test_weights_of_every_label_reach_the_batch(tmp_path):
    frames = water_frames(2)
    names = ("energy", "forces", "stress", "charges", "dipole", "density_coefficients", "potential")
    names += ("fermi_level", "total_charge")
    for atoms in frames:
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
        atoms.info |= {"REF_stress": np.eye(3), "REF_fermi_level": -4.0}
        atoms.arrays |= {"REF_multipoles": np.ones((len(atoms), 4)), "REF_potential": np.ones(len(atoms))}
    for i, name in enumerate(names):
        frames[1].info[f"config_{name}_weight"] = [2.0 + i] * 3 if name == "dipole" else 2.0 + i
    _, graphs, _ = prepared(tmp_path, frames, data=data(tmp_path))
    batch = first_batch(graphs["train"])
    for i, name in enumerate(names):
        # dipoles of crystals count only where somebody says so
        first = 0.0 if name == "dipole" else 1.0
        found = batch[f"{name}_weight"].reshape(2, -1)
        assert found[0].tolist() == [first] * found.shape[1], name
        assert found[1].tolist() == [2.0 + i] * found.shape[1], name


def test_stress_labels_in_every_shape(tmp_path):
    """ASE's order of six is xx, yy, zz, yz, xz, xy."""
    tensor = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    frames = water_frames(3)
    for atoms, given in zip(frames, (np.arange(1.0, 7.0), tensor.ravel(), tensor), strict=True):
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
        atoms.info["REF_stress"] = given
    _, graphs, _ = prepared(tmp_path, frames, data=data(tmp_path))
    assert first_batch(graphs["train"])["stress"].tolist() == [tensor.tolist()] * 3


def test_energies_survive_float32(tmp_path):
    """A million eV of core electrons does not drown an meV."""
    frames = water_frames(6)
    for atoms in frames:
        atoms.info["REF_energy"] += 1e6 * np.count_nonzero(atoms.numbers == 8)
    energies = {"H": ENERGIES[1], "O": ENERGIES[8] + 1e6}
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    values["model"] |= {"dtype": "float32", "atomic_energies": energies}
    _, graphs, _ = prepare(config_from_dict(values), ALONE)
    batch = first_batch(graphs["train"])
    want = [a.info["REF_energy"] - sum(energies[s] for s in a.symbols) for a in frames]
    np.testing.assert_allclose(batch["energy"], want, atol=1e-6)
    assert batch["energy"].dtype == torch.float32


def test_what_the_frames_decide(tmp_path):
    frames = water_frames(6)
    _, graphs, full = prepared(tmp_path, frames, data=data(tmp_path))
    assert full["elements"] == (1, 8)
    forces = np.concatenate([a.arrays["REF_forces"] for a in frames])
    assert full["backbone"]["scale"] == pytest.approx(np.sqrt((forces**2).mean()))
    # frames without forces do not count as frames at rest
    bare = [a.copy() for a in frames]
    for atoms in bare[::2]:
        del atoms.arrays["REF_forces"]
    _, _, less = prepared(tmp_path / "bare", bare, data=data(tmp_path / "bare"))
    forces = np.concatenate([a.arrays["REF_forces"] for a in frames[1::2]])
    assert less["backbone"]["scale"] == pytest.approx(np.sqrt((forces**2).mean()))
    neighbours = [
        (np.linalg.norm(a.positions[:, None] - a.positions, axis=2) < 5.0).sum(1) - 1 for a in frames
    ]
    assert full["backbone"]["avg_num_neighbors"] == pytest.approx(np.concatenate(neighbours).mean())
    # H2O only: one number per molecule is all that energies tell; the shortest solution is taken
    rest = first_batch(graphs["train"])["energy"].numpy()
    molecules = np.array([len(a) // 3 for a in frames])
    assert abs(molecules @ rest) < 1e-6 * np.abs(rest).sum()
    hydrogen, oxygen = full["atomic_energies"]
    assert hydrogen == pytest.approx(2 * oxygen)


def test_isolated_atoms(tmp_path):
    frames = water_frames(4)
    for number, energy in reversed(ENERGIES.items()):  # not in the model's order
        info = {"REF_energy": energy, "config_type": "IsolatedAtom"}
        frames.append(Atoms([number], [[0, 0, 0]], info=info))
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    values["model"]["atomic_energies"] = "isolated"
    _, graphs, full = prepare(config_from_dict(values), ALONE)
    assert full["atomic_energies"] == (ENERGIES[1], ENERGIES[8])
    assert len(graphs["train"]) == 4
    # none of them is drawn into the validation set, whatever the seed
    for seed in range(20):
        split = data(tmp_path, valid_fraction=0.25, test_fraction=0.25, split_seed=seed)
        sets = read_sets(config_from_dict(values | {"data": split}).data)
        assert [len(sets[name]) for name in ("train", "valid", "test")] == [4, 1, 1]
        assert sum(is_isolated(a) for a in iterate(sets["train"].frames)) == 2
    write(tmp_path / "frames.xyz", frames[:-1])
    with pytest.raises(ValueError, match="there is none of H"):
        prepare(config_from_dict(values), ALONE)


def test_results_of_ase_are_labels(tmp_path):
    frames = water_frames(2)
    for atoms in frames:
        results = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info, atoms.arrays["REF_forces"] = {}, 0 * atoms.positions
    write(tmp_path / "frames.xyz", frames)
    config = configuration(tmp_path, data=data(tmp_path, energy_key="energy", forces_key="forces"))
    found = labelled(read_frames(tmp_path / "frames.xyz", config.data)[1], config.data)
    assert found.info["energy"] == pytest.approx(frames[1].calc.results["energy"])
    np.testing.assert_allclose(found.arrays["forces"], frames[1].calc.results["forces"], atol=1e-7)


def test_directions_that_are_no_observables():
    """Dipoles along periodic directions do not count; a slab has no stress; fields change sign."""
    atoms = Atoms("H", [[0, 0, 0]], cell=[4, 5, 30], pbc=[True, True, False])
    atoms.info |= {"REF_dipole": [1.0, 2, 3], "REF_stress": np.eye(3), "external_field": 0.2}
    config = configuration_data(field_convention="physical")
    found = labelled(atoms, config)
    assert found.info["config_dipole_weight"].tolist() == [0, 0, 1]
    assert "stress" not in found.info
    assert not counts(atoms, config, "stress")
    atoms.pbc = True
    assert counts(atoms, config, "stress")
    atoms.pbc = (True, True, False)
    assert found.info["external_field"].tolist() == [0, 0, -0.2]
    assert labelled(atoms, configuration_data()).info["external_field"].tolist() == [0, 0, 0.2]


def configuration_data(**changes):
    return config_from_dict(
        {"data": {"train": "a.xyz"} | changes, "model": {"rule": "local"}, "stages": [{"epochs": 1}]}
    ).data


def test_hdf5_is_the_same(tmp_path):
    h5py = pytest.importorskip("h5py")
    from mace.data import KeySpecification, config_from_atoms, save_configurations_as_HDF5

    frames = water_frames(12)  # the name of the eleventh comes before that of the third
    frames[3].info |= {"config_energy_weight": 0.25, "config_weight": 0.5}
    config = configuration(tmp_path)
    write(tmp_path / "frames.xyz", frames)
    keys = KeySpecification(
        {"energy": "REF_energy", "dipole": "REF_dipole", "total_charge": "total_charge"},
        {"forces": "REF_forces", "charges": "REF_charges"},
    )
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        save_configurations_as_HDF5([config_from_atoms(a, keys) for a in frames], None, file)
    stored = read_frames(tmp_path / "frames.h5", config.data)
    assert len(stored) == 12
    for one, two in zip(stored, read_frames(tmp_path / "frames.xyz", config.data), strict=True):
        first, second = labelled(one, config.data), labelled(two, config.data)
        assert set(second.info) <= set(first.info)
        for key in ("energy", "dipole", "total_charge"):
            np.testing.assert_allclose(first.info[key], second.info[key], atol=1e-7)
        for key in ("forces", "charges", "positions", "numbers"):
            np.testing.assert_allclose(first.arrays[key], second.arrays[key], atol=1e-7)
    assert stored[3].info["config_energy_weight"] == 0.25
    assert [float(a.info["config_weight"]) for a in stored] == [1.0] * 3 + [0.5] + [1.0] * 8
    _, graphs, _ = prepared(tmp_path, data={"train": str(tmp_path / "frames.h5"), "num_workers": 1})
    assert {name: len(g) for name, g in graphs.items()} == {"train": 11, "valid": 1}


def test_hdf5_says_what_is_wrong_with_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        group = file.create_group("config_batch_0/config_0")
        group["atomic_numbers"], group["positions"], group["cell"] = [1], np.zeros((1, 3)), np.eye(3)
        group["pbc"] = [1.0, np.nan, 0.0]
        group["head"] = "dft"
        group.create_group("properties")
    frames = read_frames(tmp_path / "frames.h5", configuration_data())
    with pytest.raises(ValueError, match=r"pbc=\[1.0, nan, 0.0\] in config_batch_0/config_0: T or F only"):
        frames[0]
    shutil.copy(tmp_path / "frames.h5", tmp_path / "good.h5")
    with h5py.File(tmp_path / "good.h5", "r+") as file:
        file["config_batch_0/config_0/pbc"][...] = [1, 1, 0]
    shutil.copy(tmp_path / "good.h5", tmp_path / "less.h5")
    with h5py.File(tmp_path / "less.h5", "r+") as file:
        del file["config_batch_0/config_0/positions"]
    with pytest.raises(FileError, match=r"less.h5 lacks a part of config_batch_0/config_0: .*positions"):
        read_frames(tmp_path / "less.h5", configuration_data())[0]
    frame = read_frames(tmp_path / "good.h5", configuration_data())[0]
    assert frame.pbc.tolist() == [True, True, False]
    assert frame.info["head"] == "dft"
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FileError, match=r"data.train: .*text.h5 cannot be read"):
        read_frames(tmp_path / "text.h5", configuration_data())


@pytest.mark.parametrize(
    "names", [("charge", "spin"), ("total_charge", "total_spin"), ("REF_charge", "multiplicity")]
)
def test_charges_of_every_name_are_trained_on(tmp_path, names):
    frames = water_frames(4)
    for i, atoms in enumerate(frames):
        atoms.info.pop("total_charge")
        atoms.info[names[0]] = i - 1
        atoms.info[names[1]] = 1 + i % 2
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    values["model"] |= {"rule": "equilibrated", "constraint": "charge"}
    _, graphs, _ = prepare(config_from_dict(values), ALONE)
    assert first_batch(graphs["train"])["total_charge"].tolist() == [-1, 0, 1, 2]


def test_charges_that_would_be_lost(tmp_path, caplog):
    frames = water_frames(4)
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    values["model"] |= {"rule": "equilibrated", "constraint": "charge"}

    def run(**keys):
        write(tmp_path / "frames.xyz", frames)
        return prepare(config_from_dict(values | {"data": data(tmp_path, **keys)}), ALONE)

    frames[1].info["charge"] = 1
    with pytest.raises(ValueError, match=r"frame 1 of .*are both the total charge"):
        run()
    for atoms in frames:
        atoms.info["q"] = atoms.info.pop("total_charge")
    frames[1].info["q"] = 1
    _, graphs, _ = run(total_charge_key="q")
    assert first_batch(graphs["train"])["total_charge"].tolist() == [0, 1, 0, 0]
    del frames[1].info["q"]
    with pytest.raises(ValueError, match=r"frame 1 of .*holds 'charge' but not 'q'"):
        run(total_charge_key="q")
    for atoms in frames:
        atoms.info = {"REF_energy": atoms.info["REF_energy"], "my_charge": 1.0}
    frames[0].info["charge"] = 0
    caplog.clear()
    run()
    assert "3 of 4 frames, first frame 1 of" in caplog.text
    assert "they count as neutral (my_charge of their info is not read" in caplog.text
    for atoms in frames[1:]:
        atoms.set_initial_charges([-1.0] + [0.0] * (len(atoms) - 1))
    with pytest.raises(
        ValueError, match=r"frame 1 of .* no total charge, but initial charges that sum to -1"
    ):
        run()


def test_multiplicities_that_cannot_be(tmp_path):
    frames = water_frames(2)
    frames[1].info["spin"] = 2
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    prepare(config_from_dict(values), ALONE)  # of no concern to this model
    values["model"] |= {"rule": "recursion", "constraint": "charge_spin", "density": {"l_max": 1}}
    values["model"]["backbone"] |= {"hidden_irreps": "4x0e+4x1o", "num_interactions": 2}
    with pytest.raises(ValueError, match=r"frame 1 of .* 20 electrons \(charge 0\) cannot have .* 2 "):
        prepare(config_from_dict(values), ALONE)


def test_ions_and_counter_charges_reach_the_batch(tmp_path):
    frames = water_frames(2)
    ions = {"external_charges": np.array([1.0]), "external_positions": np.array([[0.0, 0.0, 9.0]])}
    frames[0].info |= ions
    values = options(tmp_path, frames=frames, data=data(tmp_path))
    _, graphs, _ = prepare(config_from_dict(values), ALONE)
    batch = first_batch(graphs["train"])
    assert batch["n_external"].tolist() == [1, 0]
    np.testing.assert_allclose(batch["external_positions"], ions["external_positions"])
    for atoms in frames:
        atoms.set_cell([6, 6, 12])
        atoms.pbc = (True, True, False)
        atoms.info["counter_charge"] = (8.0, 9.0)
    write(tmp_path / "frames.xyz", frames)
    _, graphs, _ = prepare(config_from_dict(values), ALONE)
    assert first_batch(graphs["train"])["counter_charge"].tolist() == [[8, 9], [8, 9]]
    del frames[1].info["counter_charge"]
    write(tmp_path / "frames.xyz", frames)
    with pytest.raises(ValueError, match=r"frame 0 of .* and frame 1 of .*: one has a counter_charge"):
        prepare(config_from_dict(values), ALONE)


def spoil(frames, how):
    atoms = frames[2]
    if how == "element":
        atoms.symbols[0] = "Si"
    elif how == "nan":
        atoms.arrays["REF_forces"][0, 0] = np.nan
    elif how == "shape":
        for a in frames:
            a.arrays["REF_charges"] = np.zeros((len(a), 2))
    elif how == "cell":
        atoms.pbc = True
    elif how == "no forces":
        for a in frames:
            del a.arrays["REF_forces"]


@pytest.mark.parametrize(
    ("how", "change", "message"),
    [
        ("element", {}, "frame 2 of .*frames.xyz holds Si, which the model does not support; it has H, O"),
        ("nan", {}, r"frame 2 of .*'REF_forces' \(data.forces_key\) is not finite"),
        ("shape", {}, r"'REF_charges' \(data.charges_key\) has shape \[3, 2\]; it must be \[3\]"),
        ("cell", {}, "frame 2 of .* has no volume"),
        ("no forces", {}, "no training frame holds 'REF_forces'.*'forces'.*arrays: REF_charges"),
        ("", {"energy_key": "E"}, r"'E' \(data.energy_key\).*info: REF_dipole, REF_energy"),
        ("", {"dipole_key": "mu"}, "'mu'.*the configuration asks for"),
        ("", {"train": "nowhere.xyz"}, "data.train: there is no file nowhere.xyz"),
        ("", {"valid": ["nowhere.xyz"]}, "data.valid: there is no file nowhere.xyz"),
        ("", {"valid_fraction": 0.9, "test_fraction": 0.09}, "too few"),
    ],
)
def test_bad_data_is_named(tmp_path, how, change, message):
    frames = water_frames(4)
    spoil(frames, how)
    values = options(tmp_path, frames=frames, data=data(tmp_path) | change)
    values["model"]["elements"] = ["H", "O"]
    values["model"]["atomic_energies"] = {"H": 0.0, "O": 0.0}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(config_from_dict(values), ALONE)


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "text.xyz").write_text("hello\nworld\n")
    for name in ("empty.xyz", "text.xyz"):
        with pytest.raises(ValueError, match=f"data.train: .*{name}"):
            read_frames(tmp_path / name, configuration_data())


def test_direct_stages_need_a_state_and_a_reference(tmp_path):
    values = options(tmp_path)
    values["stages"][0]["scf"] = "direct"
    with pytest.raises(ValueError, match=r"stages\[0\].scf is direct, but the rule"):
        prepare(config_from_dict(values), ALONE)


def test_seeds_decide_the_order_and_the_split(tmp_path):
    """Each epoch and seed has its own order of the frames, each split seed its own validation frames."""
    orders = {}
    for seed in (0, 7):
        sampler = EpochBatches(10, 4, seed)
        for sampler.epoch in (0, 1):
            orders[seed, sampler.epoch] = tuple(i for batch in sampler for i, _ in batch)
    assert len(set(orders.values())) == 4
    splits = []
    for seed in (0, 1, 2, 1):
        config = configuration(tmp_path, data=data(tmp_path, valid_fraction=0.3, split_seed=seed)).data
        splits.append(tuple(read_sets(config)["valid"].names))
    assert splits[1] == splits[3]
    assert len(set(splits)) == 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_batch(world):
    ranks = [EpochBatches(10, 4, 7, rank, world) for rank in range(world)]
    for sampler in ranks:
        sampler.epoch = 3
    batches = list(zip(*ranks, strict=True))
    counted = [[i for part in batch for i, counts in part if counts] for batch in batches]
    assert [len(b) for b in counted] == [4, 4, 2]
    order = [i for batch in counted for i in batch]
    assert sorted(order) == list(range(10))
    assert all(part for batch in batches for part in batch)  # nobody comes with nothing
    again = EpochBatches(10, 4, 7)
    again.epoch = 3
    assert sorted(i for i, _ in next(iter(again))) == sorted(counted[0])
    again.epoch = 4
    assert [i for b in again for i, _ in b] != order
