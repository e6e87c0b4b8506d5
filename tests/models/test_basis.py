"""The basis of the symmetric contraction is the configuration's, whatever is installed; every file loads."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from ase import Atoms
from safetensors import safe_open

import scfmlip
from scfmlip.data import path

HERE = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
CUEQ = importlib.util.find_spec("cuequivariance") is not None

# written by 0.1.0 with cuequivariance and without, and what they gave there: eV, forces on O, weights
OLD = {
    "0.1.0-reduced": (4.310105036623792, [1.070789392970624, 1.3280142025349169, 0.13814385316270159], 292),
    "0.1.0-full": (
        2.2650272843654173,
        [-0.020098143019010598, -0.05012355326637452, -0.010003936579736276],
        348,
    ),
}
SMALL = {
    "elements": ["H", "O"],
    "backbone": {"hidden_irreps": "4x0e+4x1o", "MLP_irreps": "4x0e", "max_ell": 1, "radial_MLP": [4]},
    "rule": "short_range",
}

# importing these fails, as where they are not installed
BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cuequivariance", "cuequivariance_torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""
EVALUATE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import scfmlip, torch
from ase import Atoms
def evaluate(model):
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]], cell=[4, 4.4, 5], pbc=True)
    atoms.info.update(charge=1.0, spin=2)
    atoms.calc = scfmlip.ase.Calculator(model)
    return [atoms.get_potential_energy(), atoms.get_forces().tolist()]
"""


def without_cuequivariance(script: str):
    """What the script prints as JSON, in a process that cannot import cuequivariance."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + EVALUATE + script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/kernels", "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def evaluate(model):
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.1]], cell=[4, 4.4, 5], pbc=True)
    atoms.info.update(charge=1.0, spin=2)
    atoms.calc = scfmlip.ase.Calculator(model)
    return [atoms.get_potential_energy(), atoms.get_forces().tolist()]


def recorded(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["config"])["backbone"]["options"].get("use_reduced_cg")


@pytest.mark.parametrize("name", OLD)
def test_files_of_0_1_0_load_and_are_written_with_their_basis(name, tmp_path):
    energy, forces, n_weights = OLD[name]
    file = HERE / f"{name}.safetensors"
    assert recorded(file) is None
    model = scfmlip.load(file)
    scfmlip.save(model, tmp_path / "again.safetensors")
    assert recorded(tmp_path / "again.safetensors") is ("reduced" in name)
    for loaded in (model, scfmlip.load(tmp_path / "again.safetensors")):
        assert sum(p.numel() for p in loaded.parameters()) == n_weights
        assert loaded.config.backbone.options["use_reduced_cg"] is ("reduced" in name)
        got = evaluate(loaded)
        assert got[0] == pytest.approx(energy, abs=1e-10)
        assert got[1][0] == pytest.approx(forces, abs=1e-10)


@pytest.mark.slow
def test_the_same_without_cuequivariance(tmp_path):
    """
    Old files, new ones of either basis and the shipped ones; what is built there is what is built here.

    What becomes mace-torch's model again says its basis.
    """
    model = scfmlip.load(HERE / "0.1.0-reduced.safetensors")
    scfmlip.save(model, tmp_path / "reduced.safetensors")
    shipped = [str(path(f"models/al_water-{name}.safetensors")) for name in ("equilibrated", "fixed_point")]
    files = [*(str(HERE / f"{name}.safetensors") for name in OLD), str(tmp_path / "reduced.safetensors")]
    short, reduced = str(tmp_path / "short.safetensors"), {"use_reduced_cg": True} if CUEQ else {}
    network = scfmlip.models.build({**SMALL, "backbone": {**SMALL["backbone"], "options": reduced}})
    scfmlip.save(network, short)
    found = without_cuequivariance(
        f"""
built = scfmlip.models.build({{**json.loads({json.dumps(json.dumps(SMALL))}), "dtype": "float64"}})
try:
    scfmlip.models.build({{**json.loads({json.dumps(json.dumps(SMALL))}),
                          "backbone": {{"options": {{"use_reduced_cg": True}}}}}})
    error = ""
except ValueError as caught:
    error = str(caught)
from safetensors.torch import load_file
same = []
for file in {shipped}:
    given, state = load_file(file), scfmlip.load(file).state_dict()
    same.append(given.keys() == state.keys() and all(torch.equal(given[k], state[k]) for k in given))
network = scfmlip.models.to_mace(scfmlip.load({short!r}))
print(json.dumps([[evaluate(file) for file in {files}], evaluate(built), same, error,
                  built.config.backbone.options, network.use_reduced_cg]))
"""
    )
    assert found[0] == [evaluate(file) for file in files]
    here = scfmlip.models.build({**SMALL, "dtype": "float64"})
    assert here.config.backbone.options == {"use_reduced_cg": False} == found[4]
    assert evaluate(here) == found[1]
    assert found[2] == [True, True]
    assert "needs the contraction basis of cuequivariance, which is not installed: pip install" in found[3]
    assert found[5] is CUEQ


@pytest.mark.skipif(not CUEQ, reason="needs cuequivariance")
def test_the_basis_is_the_configurations():
    full = scfmlip.models.build({**SMALL, "dtype": "float64"})
    options = {"use_reduced_cg": True}
    reduced = scfmlip.models.build(
        {**SMALL, "dtype": "float64", "backbone": {**SMALL["backbone"], "options": options}}
    )
    counts = [sum(p.numel() for p in m.parameters()) for m in (full, reduced)]
    assert counts[1] < counts[0]
    states = [copy.deepcopy(m.state_dict()) for m in (full, reduced)]
    want = [evaluate(m) for m in (full, reduced)]
    assert want[0] != want[1]
    for model, other in ((full, 1), (reduced, 0), (full, 0), (reduced, 1)):
        parameters = list(model.parameters())
        model.load_state_dict(states[other])
        assert evaluate(model) == want[other]
        assert model.backbone.mace.use_reduced_cg is bool(other)
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


@pytest.mark.skipif(not CUEQ, reason="needs cuequivariance")
def test_from_and_to_mace_keep_the_basis(tmp_path):
    """By its name, which mace-torch's own conversion goes by."""
    from mace_torch.mace_models import frames, mace_batch, mace_model

    original = mace_model.__wrapped__(correlation=3, hidden="8x0e + 8x1o")
    assert original.use_reduced_cg
    batch = mace_batch(frames(), original)
    want = original(dict(batch))["energy"].detach()
    model = scfmlip.models.from_mace(original)
    assert model.config.backbone.options["use_reduced_cg"] is True
    scfmlip.save(model, tmp_path / "m.safetensors")
    back = scfmlip.models.to_mace(scfmlip.load(tmp_path / "m.safetensors"))
    assert back.use_reduced_cg is True
    torch.testing.assert_close(back(dict(batch))["energy"].detach(), want, rtol=1e-12, atol=1e-12)
    # a network that was made where the package is missing, whatever its option says
    full = mace_model.__wrapped__(correlation=3, hidden="8x0e + 8x1o", use_reduced_cg=False)
    full.use_reduced_cg = True
    model = scfmlip.models.from_mace(full)
    assert model.config.backbone.options["use_reduced_cg"] is False
    assert scfmlip.models.to_mace(model).use_reduced_cg is False


def test_weights_of_another_model_are_refused():
    small, wide = (
        scfmlip.models.build({**SMALL, "backbone": {**SMALL["backbone"], "hidden_irreps": irreps}})
        for irreps in ("4x0e+4x1o", "8x0e+8x1o")
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        small.load_state_dict(wide.state_dict())


def test_training_of_0_1_0_goes_on(tmp_path):
    """Weights, optimiser and averages of either basis, whose configuration does not tell it."""
    weights = scfmlip.load(HERE / "0.1.0-reduced.safetensors").state_dict()
    with safe_open(HERE / "0.1.0-reduced.safetensors", framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    model = scfmlip.models.build(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.load_state_dict(weights)
    before = evaluate(model)
    assert before[0] == pytest.approx(OLD["0.1.0-reduced"][0], abs=1e-10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert evaluate(model) != before
