"""Heads with energies of their own: two levels of theory in one file, models that come and go."""

import numpy as np
import pytest
import torch
from ase import Atoms
from mace_torch.mace_models import mace_model

import scfmlip
from scfmlip.mace_torch.batches import make_batch
from scfmlip.training import config_from_dict, prepare, train
from scfmlip.training.data import EpochBatches, make_loader
from scfmlip.training.processes import Processes

from .problems import options, water_frames

ALONE = Processes(0, 1, torch.device("cpu"))
# eV of H and O: all electrons, and a pseudopotential
LEVELS = {"full": (-13.6, -2040.0), "pseudo": (-12.5, -431.0)}


def two_levels(count=8):
    """Water, hydrogen and hydroxyl, one frame after the other in another level, 0.1 eV apart."""
    frames = []
    for i, atoms in enumerate(water_frames(count)):
        atoms = atoms[[0, 1, 2][i % 3 :]] if i > count // 2 else atoms[:3]
        head = list(LEVELS)[i % 2]
        own = np.array([{1: LEVELS[head][0], 8: LEVELS[head][1]}[z] for z in atoms.numbers])
        atoms.info = {"REF_energy": own.sum() + 0.1 * i, "head": head}
        frames.append(atoms)
    return frames


def configured(folder, frames, **model):
    values = options(folder, frames=frames, data={"train": str(folder / "frames.xyz"), "valid_fraction": 0.0})
    values["model"]["backbone"]["heads"] = list(LEVELS)
    values["model"] |= {"rule": "short_range"} | model
    values["stages"] = [{"epochs": 1, "loss": {"energy": 1}}]
    return values


def isolated():
    numbers = {1: 0, 8: 1}
    return [
        Atoms([z], [[0, 0, 0]], info={"config_type": "IsolatedAtom", "head": head, "REF_energy": row[i]})
        for head, row in LEVELS.items()
        for z, i in numbers.items()
    ]


@pytest.mark.parametrize("how", ["average", "isolated", "given"])
def test_each_head_has_its_own_energies(tmp_path, how):
    energies = (
        {head: dict(zip("HO", row, strict=True)) for head, row in LEVELS.items()} if how == "given" else how
    )
    frames = two_levels() + (isolated() if how == "isolated" else [])
    values = configured(tmp_path, frames, atomic_energies=energies)
    model, graphs, full = prepare(config_from_dict(values), ALONE)
    batch = next(iter(make_loader(graphs["train"], EpochBatches(8, 8, None))))
    assert batch["head"].tolist() == [0, 1] * 4
    if how == "average":
        assert batch["energy"].abs().max() < 1  # 260 eV an atom with one set for both
    else:
        np.testing.assert_allclose(full["atomic_energies"], list(LEVELS.values()))
        np.testing.assert_allclose(batch["energy"], 0.1 * np.arange(8), atol=1e-9)
    # the model's total is its interaction energy and these
    out = model(batch)
    rows = np.array(full["atomic_energies"])
    want = [rows[i % 2] @ [np.count_nonzero(frames[i].numbers == z) for z in (1, 8)] for i in range(8)]
    np.testing.assert_allclose(out["energy"] - out["interaction_energy"], want, atol=1e-8)


def test_frames_of_no_head_and_of_another(tmp_path):
    frames = two_levels()
    del frames[3].info["head"]
    with pytest.raises(
        ValueError, match=r"frame 3 of .*: the model has the heads 'full', 'pseudo': choose one"
    ):
        prepare(config_from_dict(configured(tmp_path, frames)), ALONE)
    frames[3].info["head"] = "Full"
    (tmp_path / "frames.xyz").unlink()
    with pytest.raises(ValueError, match=r"frame 3 of .*: the model has no head 'Full'.*did you mean 'full'"):
        prepare(config_from_dict(configured(tmp_path, frames)), ALONE)


def test_what_is_trained_is_what_is_evaluated(tmp_path):
    summary = train(configured(tmp_path, two_levels()), quiet=True)
    assert summary["train"]["energy_rmse"] < 1
    model = scfmlip.load(tmp_path / "run" / "best.safetensors")
    for atoms in two_levels(4):
        atoms.calc = scfmlip.ase.Calculator(model)
        assert abs(atoms.get_potential_energy() - atoms.info["REF_energy"]) < 5
    again = {**configured(tmp_path, two_levels()), "start_from": str(tmp_path / "run" / "best.safetensors")}
    again["output"] = str(tmp_path / "another")
    del again["model"]
    _, _, full = prepare(config_from_dict(again), ALONE)
    assert full["atomic_energies"] == model.config.atomic_energies


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (None, (0.0, 0.0)),
        ({"H": 1, "O": 2}, (1.0, 2.0)),
        ([1, 2], (1.0, 2.0)),
        ({"full": {"H": 1, "O": 2}, "pseudo": [3, 4]}, ((1.0, 2.0), (3.0, 4.0))),
        ([[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0))),
        ([[1, 2], [1, 2]], (1.0, 2.0)),
    ],
)
def test_energies_in_a_configuration(given, want):
    config = {"elements": ["H", "O"], "rule": "short_range", "backbone": {"heads": list(LEVELS)}}
    typed = scfmlip.models.make_config({**config, "atomic_energies": given})
    assert typed.atomic_energies == want
    assert scfmlip.models.make_config(scfmlip.models.config_to_dict(typed)) == typed
    assert list(typed.energies_by_head) == list(LEVELS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"full": {"H": 1, "O": 2}}, "by head needs 'full', 'pseudo'.*got 'full'"),
        ({"full": [1, 2], "pseudo": [1, 2], "other": [1, 2]}, "by head needs"),
        ([[1, 2]], "needs 2 rows, got 1"),
        ([[1, 2], [3]], "needs 2 numbers, got 1"),
        ([1], "needs 2 numbers, got 1"),
        ({"full": {"H": 1}, "pseudo": [1, 2]}, "has no value for O"),
    ],
)
def test_energies_that_do_not_fit(given, message):
    config = {"elements": ["H", "O"], "rule": "short_range", "backbone": {"heads": list(LEVELS)}}
    with pytest.raises(ValueError, match=message):
        scfmlip.models.make_config({**config, "atomic_energies": given})


def test_mace_torchs_energies_come_and_go(tmp_path):
    """from_mace's configuration says what the weights say; to_mace and files keep it."""
    single = mace_model()
    assert scfmlip.models.from_mace(single).config.atomic_energies == (-1.0, -2.0, -3.0)
    config = {
        "elements": ["H", "O", "Si"],
        "rule": "short_range",
        "dtype": "float64",
        "atomic_energies": [[-1.0, -2, -3], [-10.0, -20, -30]],
        "backbone": {"heads": list(LEVELS), "r_max": 3.0, "hidden_irreps": "4x0e", "max_ell": 1},
    }
    model = scfmlip.models.build(config)
    back = scfmlip.models.from_mace(scfmlip.models.to_mace(model))
    scfmlip.save(back, tmp_path / "m.safetensors")
    for one in (model, back, scfmlip.load(tmp_path / "m.safetensors")):
        assert one.config.atomic_energies == ((-1.0, -2.0, -3.0), (-10.0, -20.0, -30.0))
        frames = [Atoms("H", info={"head": head}) for head in LEVELS]
        batch = make_batch(one, frames, torch.device("cpu"), torch.float64)
        out = one(batch)
        assert (out["energy"] - out["interaction_energy"]).tolist() == [-1.0, -10.0]
