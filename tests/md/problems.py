"""A small molecule, slab and crystal in a box with small models, as files of a run."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import yaml
from ase.io import write
from models.cases import make_model, rattled, slab, water

import scfmlip
import scfmlip.interfaces.ase
from scfmlip.interfaces.loading import load_model
from scfmlip.md import config_from_dict

_built = {}


def load_once(path, device, trust_pickle=False):
    """Models are built, which takes seconds, once for each file that there is; every caller has a copy."""
    if not isinstance(path, str) or not Path(path).is_file():
        return load_model(path, device, trust_pickle)
    key = hashlib.sha256(Path(path).read_bytes()).digest()
    if key not in _built:
        _built[key] = load_model(path, device, trust_pickle)
    return copy.deepcopy(_built[key])


def share_models(monkeypatch):
    """Let calculators load by `load_once`."""
    monkeypatch.setattr(scfmlip.interfaces.ase, "load_model", load_once)


def crystal():
    """Eight atoms of rock salt, two of them hydrogen's; large enough for the cutoff to see images only."""
    from ase.build import bulk

    atoms = rattled(bulk("AlO", "rocksalt", a=4.2, cubic=True), 3, 0.03)
    atoms.info["charge"] = 0.0
    return atoms


FRAMES = {"molecule": water, "slab": lambda: slab(0.0, True), "crystal": crystal}


def files(folder, case="affine", frame="molecule", constraint=None):
    """Paths of a model's and a structure's file."""
    model, structure = folder / f"{case}.safetensors", folder / f"{frame}.xyz"
    scfmlip.save(make_model(case, constraint=constraint), model)
    write(structure, FRAMES[frame](), format="extxyz")
    return {"model": str(model), "structure": str(structure)}


def options(folder, case="affine", frame="molecule", constraint=None, **changes):
    """Plain options of a short run."""
    return {
        **files(folder, case, frame, constraint),
        "output": str(folder / "run"),
        "steps": 6,
        "temperature": 300,
        "trajectory_interval": 2,
        "restart_interval": 3,
        "device": "cpu",
        **changes,
    }


def config(folder, *arguments, **changes):
    """The same, typed."""
    return config_from_dict(options(folder, *arguments, **changes))


def write_yaml(folder, values):
    """The options as a file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def same(a, b):
    """Whether two arrays are the same, bit for bit."""
    return np.array_equal(np.asarray(a), np.asarray(b))
