"""Memory of a step: as estimated, and refused where there is none."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from models.cases import make_model, slab, water

import scfmlip.mace_torch.memory as memory
from mace_torch.mace_models import mace_model
from scfmlip.ase import Calculator
from scfmlip.mace_torch.memory import MemoryCheck, step_memory

# what a process had before a step does not count, nor what it once had: the peak is set back
MEASURE = """
import ctypes, gc, json, mace, torch
from ase.build import bulk
import scfmlip
from scfmlip.mace_torch.batches import make_batch
from scfmlip.mace_torch.memory import step_memory
torch.set_num_threads(1)

def status(key):
    with open("/proc/self/status") as file:
        return next(1024.0 * int(line.split()[1]) for line in file if line.startswith(key))

def batch_of(model, n):
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(n)
    atoms.rattle(0.05, seed=1)
    return make_batch(model, [atoms], torch.device("cpu"), torch.float64)

rows = []
for radial in ([64, 64, 64], [8]):
    backbone = {"r_max": 5.0, "hidden_irreps": "32x0e+32x1o", "max_ell": 3, "correlation": 3}
    model = scfmlip.models.build({"elements": ["O", "Mg"], "backbone": backbone | {"radial_MLP": radial},
        "rule": "short_range", "constraint": "none", "dtype": "float64"}).eval().requires_grad_(False)
    model(batch_of(model, 1))
    for n in (4, 5):
        batch = batch_of(model, n)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        model(batch)
        estimate = step_memory(model, len(batch["positions"]), batch["edge_index"].shape[1])
        rows.append([status("VmHWM") - before, estimate])
print(json.dumps(rows))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak of a process")
def test_the_estimate_is_right():
    """Peak memory of energy and forces, 512 and 1,000 atoms; wide and narrow radial networks."""
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # what is freed goes back at once
    plain |= {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True, env=plain, timeout=300
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 4
    for measured, estimate in rows:
        assert 0.6 < estimate / measured < 1.5, rows


def test_it_grows_with_atoms_pairs_and_precision():
    double, single = make_model("qeq"), make_model("qeq", dtype="float32")
    base = step_memory(double, 100, 4000)
    assert base == pytest.approx(2 * step_memory(single, 100, 4000))
    assert step_memory(double, 200, 8000) == pytest.approx(2 * base)
    assert step_memory(double, 100, 8000) > base
    assert step_memory(torch.nn.Linear(2, 2), 100, 4000) is None


def test_an_accelerated_network_is_the_same_one():
    import scfmlip

    plain = mace_model()
    assert step_memory(scfmlip.accelerate(plain), 10, 300) == step_memory(plain, 10, 300)


def test_a_step_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1024.0)
    monkeypatch.setattr(memory, "_SURELY_FREE", 0)
    calc = Calculator(make_model("qeq"))
    with pytest.raises(ValueError, match=r"3 atoms with 6 pairs .* GiB are free: take fewer atoms, float32"):
        calc.get_property("energy", water())


def test_free_memory_is_looked_at_for_larger_steps_only(monkeypatch):
    looks = []

    def free(device):
        looks.append(device)
        return np.inf

    monkeypatch.setattr(memory, "free_memory", free)
    monkeypatch.setattr(memory, "_SURELY_FREE", 0)
    check = MemoryCheck(make_model("qeq"), torch.device("cpu"))
    for n_edges in (1000, 1000, 1050, 2000, 100):
        check(50, n_edges)
    assert len(looks) == 2
    calc = Calculator(make_model("qeq"))
    calc.get_property("forces", slab())
    calc.get_property("forces", slab())
    assert len(looks) == 3
    atoms = slab()
    pairs, _ = calc.neighbours(atoms.positions, atoms.cell.array, atoms.pbc, float(calc.model.r_max))
    assert calc.memory_check.needed == step_memory(calc.model, len(atoms), pairs.shape[1])
