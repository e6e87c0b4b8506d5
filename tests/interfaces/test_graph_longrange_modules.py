"""Our modules with graph-longrange's names against both versions of that package."""

import copy
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mace", reason="graph-longrange needs mace-torch")

from electrostatics.systems import random_batch, reciprocal_arguments, spread_positions
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


MODES = {
    "pbc": [[True] * 3] * 3,
    "slab": [[True, True, False]] * 3,
    "molecule_in_box": [[False] * 3] * 3,
    "mixed_periodic": [[True] * 3, [True, True, False], [False] * 3],
    "auto": [[True] * 3, [True, True, False], [False] * 3],
    "realspace": [[False] * 3] * 3,
}


@pytest.mark.parametrize("l_max", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_atoms_in_any_order_and_a_volume_of_its_own(mode, l_max, generator):
    """Values and derivatives in positions, multipoles and volume."""
    oracle = graph_longrange_044()
    sizes = [5, 4, 6]
    positions, cells, batch_idx, rows = random_batch(sizes, generator, net_charge=True)
    if mode == "realspace":
        positions = torch.cat([spread_positions(n, 8.0, generator) for n in sizes])
    shuffle = torch.randperm(15, generator=generator)
    positions, batch_idx = positions[shuffle], batch_idx[shuffle]
    rows = rows[shuffle][:, : (l_max + 1) ** 2].contiguous()
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    options = {**ENERGY, "density_max_l": l_max, "pbc_handling": mode}
    more = {"feature_max_l": 1, "feature_smearing_widths": [1.5, 3.0]}
    for theirs, ours in (
        (oracle.energy.GTOElectrostaticEnergy(**options), GTOElectrostaticEnergy(**options)),
        (
            oracle.features.GTOElectrostaticFeatures(**options, **more),
            GTOElectrostaticFeatures(**options, **more),
        ),
    ):
        for factor in (1.0, torch.tensor([1.3, 0.7, 2.0])):
            found = []
            for module in (theirs, ours):
                r, q = positions.clone().requires_grad_(), rows.clone().requires_grad_()
                v = (arguments["volume"] * factor).requires_grad_()
                given = {**arguments, "volume": v}
                out = call(module, given, r, q, batch_idx, torch.tensor(MODES[mode]))
                weights = torch.cos(torch.arange(out.numel())).view_as(out)
                gradients = torch.autograd.grad((out * weights).sum(), (r, q, v), allow_unused=True)
                found.append((out, *gradients))
            for want, got in zip(*found, strict=True):
                want, got = (torch.zeros(1) if t is None else t.detach() for t in (want, got))
                assert_close(got, want, 1e-9)


def test_potentials_at_atoms(generator):
    oracle = graph_longrange_044()
    positions, cells, batch_idx, rows = random_batch([5, 4], generator)
    arguments = {**reciprocal_arguments(oracle, CUTOFF, cells), "volume": torch.tensor([700.0, 900.0])}
    pbc = torch.tensor([[True] * 3, [True, True, False]])
    shuffle = torch.randperm(9, generator=generator)
    common = {"node_positions": positions[shuffle], "batch": batch_idx[shuffle], "pbc": pbc, **arguments}
    found = []
    options = {**FEATURES, "pbc_handling": "mixed_periodic"}
    for module in (oracle.features.GTOElectrostaticFeatures(**options), GTOElectrostaticFeatures(**options)):
        cache = module.precompute_geometry(**common)
        found.append(module.compute_esps(cache, rows[shuffle], pbc))
    assert_close(found[1], found[0], 1e-10)
    common["pbc"] = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="potentials at atoms are for crystals and slabs"):
        module.compute_esps(module.precompute_geometry(**common), rows[shuffle], pbc)
    with pytest.raises(ValueError, match="not from precompute_geometry"):
        module.forward_dynamic({"mode": "st_pbc"}, rows)


@pytest.mark.parametrize("mode", MODES)
def test_external_sources_of_044(mode, generator):
    """That package's own wrappers around our modules, against them around its own."""
    oracle = graph_longrange_044()
    energy = importlib.import_module(f"{oracle.__name__}.external_source_energy")
    features = importlib.import_module(f"{oracle.__name__}.external_source_features")
    sizes = [4, 3, 4]
    positions, cells, batch_idx, rows = random_batch(sizes, generator)
    if mode == "realspace":
        positions = torch.cat([spread_positions(n, 8.0, generator) for n in sizes])
    sources = torch.randn(5, 3, generator=generator) * 2 + 4, torch.tensor([0, 0, 1, 2, 2])
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    common = {"batch": batch_idx, "pbc": torch.tensor(MODES[mode]), **arguments}
    charges = torch.randn(5, 4, generator=generator)
    for package, wrapper, make in (
        ("energy", energy.GTOElectrostaticExternalSourceEnergy.from_energy, ENERGY),
        ("features", features.GTOElectrostaticExternalSourceFeatures.from_features, FEATURES),
    ):
        name = f"GTOElectrostatic{package.capitalize()}"
        found = []
        for cls in (getattr(getattr(oracle, package), name), globals()[name]):
            module = cls(**make, pbc_handling=mode)
            if cls is globals()[name]:
                place = f"{oracle.__name__}.{package}"
                module._original_name = (place, name)  # the package has another name here
            wrapped = wrapper(copy.deepcopy(module))
            wrapped.set_pbc_handling(mode)
            wrapped.set_external_sources(charges, *sources)
            leaf = positions.clone().requires_grad_()
            out = wrapped(source_feats=rows, node_positions=leaf, **common)
            found.append((out, *torch.autograd.grad(out.sin().sum(), leaf)))
        for want, got in zip(*found, strict=True):
            assert_close(got.detach(), want.detach(), 1e-9)


def test_what_the_originals_hold_is_that_of_an_original():
    """In the module's dtype, also after a copy; and there is nothing where it has nothing."""
    features = pytest.importorskip("graph_longrange.features")
    module = GTOElectrostaticFeatures(**FEATURES)
    assert not list(module.state_dict())
    theirs = features.GTOElectrostaticFeatures(**FEATURES)
    for ours in (module, copy.deepcopy(module)):
        assert ours.density_basis is ours.density_basis
        want = theirs.self_interaction_terms.overlap_constants
        assert_close(ours.self_interaction_terms.overlap_constants, want)
    assert module.float().density_basis.radial_spline.sigma2.dtype == torch.float32
    assert GTOElectrostaticEnergy(**ENERGY).float().density_basis.radial_spline.sigma2.dtype == torch.float32
    assert not hasattr(module, "forward_source_target")
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


def test_corrections_that_040_leaves_out(generator):
    """Also where the switch for boxes is passed beside."""
    kspace = pytest.importorskip("graph_longrange.kspace")
    energy = pytest.importorskip("graph_longrange.energy")
    if "include_pbc_corrections" not in inspect.signature(energy.GTOElectrostaticEnergy).parameters:
        pytest.skip("0.4.0 only")

    class Installed:
        pass

    Installed.kspace = kspace
    positions, cells, batch_idx, rows = random_batch([5, 4], generator)
    arguments = reciprocal_arguments(Installed, CUTOFF, cells)
    options = {**ENERGY, "include_pbc_corrections": False}
    for pbc in ([[True, True, False], [False] * 3], [[False] * 3] * 2):
        for extra in ({}, {"force_pbc_evaluator": False}, {"force_pbc_evaluator": True}):
            modules = energy.GTOElectrostaticEnergy(**options), GTOElectrostaticEnergy(**options)
            want, got = (
                call(m, arguments, positions, rows, batch_idx, torch.tensor(pbc), **extra) for m in modules
            )
            assert_close(got, want, 1e-9)


def test_a_boundary_that_versions_differ_in_is_told_once(generator):
    oracle = graph_longrange_044()
    positions, cells, batch_idx, rows = random_batch([5, 4], generator)
    arguments = reciprocal_arguments(oracle, CUTOFF, cells)
    given = arguments, positions, rows, batch_idx, torch.zeros(2, 3, dtype=torch.bool)
    module = GTOElectrostaticEnergy(**ENERGY)
    with pytest.warns(UserWarning, match="got no pbc_handling and sums isolated systems over pairs"):
        want = call(module, *given)
    assert_close(call(module, *given), want)
    module.set_pbc_handling("mixed_periodic")
    theirs = oracle.energy.GTOElectrostaticEnergy(**ENERGY)
    assert_close(call(module, *given), call(theirs, *given), 1e-10)
    # 0.4.0's callers pass their switch
    assert_close(call(GTOElectrostaticEnergy(**ENERGY), *given, force_pbc_evaluator=False), want)


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
from mace_torch.polar_models import batch_of, polar_model, random_frames
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
    from mace_torch.polar_models import batch_of, polar_model, random_frames

    model = polar_model(hidden_irreps="8x0e", num_interactions=1)
    want = model(batch_of(random_frames([(True, True, True)]), model))["energy"].item()
    assert float(run.stdout.split("energy:")[1]) == pytest.approx(want, rel=1e-9)
