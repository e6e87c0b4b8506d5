"""Our modules with graph-longrange's names against both versions of that package."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mace", reason="graph-longrange needs mace-torch")

from electrostatics.systems import random_batch, reciprocal_arguments
from oracles import graph_longrange_044
from tolerances import assert_close

from scfmlip.interfaces.graph_longrange import (
    GTOElectrostaticEnergy,
    GTOElectrostaticFeatures,
    GTOElectrostaticFeaturesMultiChannel,
    cells_from_wave_vectors,
)

ROOT = Path(__file__).parents[2]
CUTOFF = 2.77
ENERGY = {
    "density_max_l": 1,
    "density_smearing_width": 1.5,
    "kspace_cutoff": CUTOFF,
    "include_self_interaction": False,
}
FEATURES = {**ENERGY, "feature_max_l": 1, "feature_smearing_widths": [1.5, 3.0]}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def call(module, arguments, positions, rows, batch_idx, pbc, **extra):
    return module(
        source_feats=rows,
        node_positions=positions,
        batch=batch_idx,
        pbc=pbc,
        **arguments,
        **extra,
    )


@pytest.mark.parametrize("mode", ["pbc", "slab", "molecule_in_box", "mixed_periodic"])
def test_signature_of_044(mode, generator):
    oracle = graph_longrange_044()
    positions, cells, batch_idx, rows = random_batch([9, 14], generator)
    pbc = torch.tensor([[True] * 3, [True, True, False]])
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    for theirs, ours in (
        (
            oracle.energy.GTOElectrostaticEnergy(**ENERGY, pbc_handling=mode),
            GTOElectrostaticEnergy(**ENERGY, pbc_handling=mode),
        ),
        (
            oracle.features.GTOElectrostaticFeatures(**FEATURES, pbc_handling=mode),
            GTOElectrostaticFeatures(**FEATURES, pbc_handling=mode),
        ),
    ):
        ours.load_state_dict(theirs.state_dict())
        want = call(theirs, arguments, positions, rows, batch_idx, pbc)
        assert_close(call(ours, arguments, positions, rows, batch_idx, pbc), want, 1e-10)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_signature_of_040(periodic, force, generator):
    kspace = pytest.importorskip("graph_longrange.kspace")
    energy = pytest.importorskip("graph_longrange.energy")
    features = pytest.importorskip("graph_longrange.features")
    positions, cells, batch_idx, rows = random_batch([6, 8], generator)
    pbc = torch.tensor([[periodic] * 3, [False] * 3])

    class Installed:
        pass

    Installed.kspace = kspace
    arguments = reciprocal_arguments(Installed, CUTOFF, cells)
    extra = {"force_pbc_evaluator": force}
    want = call(energy.GTOElectrostaticEnergy(**ENERGY), arguments, positions, rows, batch_idx, pbc, **extra)
    got = call(GTOElectrostaticEnergy(**ENERGY), arguments, positions, rows, batch_idx, pbc, **extra)
    assert_close(got, want, 1e-10)
    theirs, ours = features.GTOElectrostaticFeatures(**FEATURES), GTOElectrostaticFeatures(**FEATURES)
    common = {"node_positions": positions, "batch": batch_idx, "pbc": pbc, **arguments, **extra}
    caches = [m.precompute_geometry(**common) for m in (theirs, ours)]
    want, got = (
        m.forward_dynamic(cache=c, source_feats=rows[:, None], pbc=pbc)
        for m, c in zip((theirs, ours), caches, strict=True)
    )
    # close atoms: both packages take finite differences over 0.1 angstrom
    assert_close(got, want, 1e-9)


@pytest.mark.parametrize("mode", ["molecule_in_box", "mixed_periodic"])
def test_boxes_that_are_no_cubes(mode, generator):
    """Corrected as if they were: wrong, and what models trained there have seen."""
    oracle = graph_longrange_044()
    positions, cells, batch_idx, rows = random_batch([9, 7], generator)
    cells = cells * torch.tensor([0.8, 1.0, 1.3])[:, None]
    pbc = torch.zeros(2, 3, dtype=torch.bool)
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    for theirs, ours in (
        (
            oracle.energy.GTOElectrostaticEnergy(**ENERGY, pbc_handling=mode),
            GTOElectrostaticEnergy(**ENERGY, pbc_handling=mode),
        ),
        (
            oracle.features.GTOElectrostaticFeatures(**FEATURES, pbc_handling=mode),
            GTOElectrostaticFeatures(**FEATURES, pbc_handling=mode),
        ),
    ):
        want = call(theirs, arguments, positions, rows, batch_idx, pbc)
        assert_close(call(ours, arguments, positions, rows, batch_idx, pbc), want, 1e-10)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_channels_of_040(n_channels, generator):
    kspace = pytest.importorskip("graph_longrange.kspace")
    features = pytest.importorskip("graph_longrange.features")
    if not hasattr(features, "GTOElectrostaticFeaturesMultiChannel"):
        pytest.skip("0.4.0 only")

    class Installed:
        pass

    Installed.kspace = kspace
    positions, cells, batch_idx, _ = random_batch([6, 8], generator)
    rows = torch.randn(14, n_channels, 4, generator=generator)
    pbc = torch.ones(2, 3, dtype=torch.bool)
    arguments = reciprocal_arguments(Installed, CUTOFF, cells)
    theirs = features.GTOElectrostaticFeaturesMultiChannel(**FEATURES)
    ours = GTOElectrostaticFeaturesMultiChannel(**FEATURES)
    want = call(theirs, arguments, positions, rows, batch_idx, pbc)
    got = call(ours, arguments, positions, rows, batch_idx, pbc)
    assert got.shape == want.shape == (14, n_channels, 8)
    assert_close(got, want, 1e-10)
    # without a dimension of channels
    want = call(theirs, arguments, positions, rows[:, 0], batch_idx, pbc)
    assert_close(call(ours, arguments, positions, rows[:, 0], batch_idx, pbc), want, 1e-10)
    if n_channels > 1:  # the other class has one
        with pytest.raises(ValueError, match="multipoles must have shape"):
            call(GTOElectrostaticFeatures(**FEATURES), arguments, positions, rows.flatten(1), batch_idx, pbc)


def test_cells_are_read_off_the_wave_vectors(generator):
    oracle = graph_longrange_044()
    _, cells, _, _ = random_batch([20, 30], generator, triclinic=0.8)
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    found = cells_from_wave_vectors(arguments["k_vectors"], arguments["k_vector_batch"], 2)
    # the same lattice, perhaps another basis: the change of basis is an integer matrix of determinant 1
    change = found @ torch.linalg.inv(cells)
    assert_close(change, change.round(), 1e-9)
    assert_close(torch.linalg.det(change), torch.ones(2), 1e-9)


def test_too_few_wave_vectors_are_named():
    k = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="fewer than three independent wave vectors"):
        cells_from_wave_vectors(k, torch.zeros(2, dtype=torch.int64), 1)


def test_polar_mace_works_with_044_installed():
    """mace-torch 0.3.16 itself fails with 0.4.4 ("unexpected keyword argument 'force_pbc_evaluator'")."""
    folder = Path(graph_longrange_044().__file__).parents[1]
    script = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{oracles!r}, {root!r}, {root!r} + "/kernels", {root!r} + "/tests"]
import torch
torch.set_default_dtype(torch.float64)
import graph_longrange
assert graph_longrange.__file__.startswith({oracles!r})
from interfaces.polar_models import batch_of, polar_model, random_frames
from scfmlip import accelerate
model = polar_model(hidden_irreps="8x0e", num_interactions=1)
batch = batch_of(random_frames([(True, True, True)]), model)
try:
    model(dict(batch))
except TypeError as error:
    print("theirs:", error)
print("energy:", accelerate(model)(dict(batch))["energy"].item())
"""
    run = subprocess.run(
        [sys.executable, "-c", script.format(oracles=str(folder), root=str(ROOT))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "theirs:" in run.stdout
    from interfaces.polar_models import batch_of, polar_model, random_frames

    model = polar_model(hidden_irreps="8x0e", num_interactions=1)
    want = model(batch_of(random_frames([(True, True, True)]), model))["energy"].item()
    assert float(run.stdout.split("energy:")[1]) == pytest.approx(want, rel=1e-9)
