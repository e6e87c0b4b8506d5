"""compat="graph_longrange" against graph-longrange 0.4.4 in float64, every boundary, with derivatives."""

import pytest
import torch
from oracles import graph_longrange_044
from tolerances import assert_close

from electrostatics.systems import random_batch, reciprocal_arguments, spread_positions
from scfmlip import Coulomb

CUTOFF = 2.77
WIDTHS = [1.5, 3.0]
TOLERANCE = 1e-10

MODES = {
    "pbc": [[True] * 3] * 3,
    "slab": [[True, True, False]] * 3,
    "molecule_in_box": [[False] * 3] * 3,
    "mixed_periodic": [[True] * 3, [True, True, False], [False] * 3],
    "auto": [[True] * 3, [True, True, False], [False] * 3],
    "realspace": [[False] * 3] * 3,
}


def batch(generator, mode):
    sizes = [12, 7, 15]
    positions, cells, batch_idx, rows = random_batch(sizes, generator, net_charge=True)
    if mode in ("realspace", "auto"):
        # finite differences of close atoms are noise in any implementation
        positions = torch.cat([spread_positions(n, 8.0, generator) for n in sizes])
    return positions, cells, batch_idx, rows


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("l_max", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_energy_and_its_gradients(mode, l_max, self_interaction, generator):
    torch.set_default_dtype(torch.float64)
    module = graph_longrange_044()
    positions, cells, batch_idx, rows = batch(generator, mode)
    rows = rows[:, : (l_max + 1) ** 2].contiguous()
    pbc = torch.tensor(MODES[mode])
    oracle = module.energy.GTOElectrostaticEnergy(
        density_max_l=l_max,
        density_smearing_width=1.5,
        kspace_cutoff=CUTOFF,
        include_self_interaction=self_interaction,
        pbc_handling=mode,
    )
    results = []
    for which in ("theirs", "ours"):
        r, p = positions.clone().requires_grad_(), rows.clone().requires_grad_()
        if which == "theirs":
            energy = oracle(
                source_feats=p,
                node_positions=r,
                batch=batch_idx,
                pbc=pbc,
                **reciprocal_arguments(module, CUTOFF, cells),
            )
        else:
            coulomb = Coulomb(
                l_max=l_max,
                sigma=1.5,
                boundary=mode,
                self_interaction=self_interaction,
                kspace_cutoff=CUTOFF,
                compat="graph_longrange",
                order="e3nn",
            )
            energy = coulomb.prepare(r, cells, pbc, batch_idx).energy(p)
        weights = torch.linspace(0.5, 1.5, 3)
        gradients = torch.autograd.grad((energy * weights).sum(), (r, p), create_graph=True)
        second = torch.autograd.grad(sum((g * torch.sin(7 * g.detach())).sum() for g in gradients), (r, p))
        results.append((energy, *gradients, *second))
    for want, got in zip(*results, strict=True):
        assert_close(got.detach(), want.detach(), TOLERANCE)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize(("l_max", "feature_l_max"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_features_and_their_gradients(mode, l_max, feature_l_max, self_interaction, generator):
    torch.set_default_dtype(torch.float64)
    module = graph_longrange_044()
    positions, cells, batch_idx, rows = batch(generator, mode)
    rows = rows[:, : (l_max + 1) ** 2].contiguous()
    pbc = torch.tensor(MODES[mode])
    oracle = module.features.GTOElectrostaticFeatures(
        density_max_l=l_max,
        density_smearing_width=1.5,
        feature_max_l=feature_l_max,
        feature_smearing_widths=WIDTHS,
        include_self_interaction=self_interaction,
        kspace_cutoff=CUTOFF,
        pbc_handling=mode,
    )
    results = []
    for which in ("theirs", "ours"):
        r, p = positions.clone().requires_grad_(), rows.clone().requires_grad_()
        if which == "theirs":
            features = oracle(
                source_feats=p,
                node_positions=r,
                batch=batch_idx,
                pbc=pbc,
                **reciprocal_arguments(module, CUTOFF, cells),
            )
        else:
            coulomb = Coulomb(
                l_max=l_max,
                sigma=1.5,
                boundary=mode,
                self_interaction=self_interaction,
                kspace_cutoff=CUTOFF,
                compat="graph_longrange",
                order="e3nn",
            )
            geometry = coulomb.prepare(r, cells, pbc, batch_idx)
            features = geometry.features(p, widths=WIDTHS, l_max=feature_l_max)
        weights = torch.cos(torch.arange(features.numel())).view_as(features)
        gradients = torch.autograd.grad((features * weights).sum(), (r, p), create_graph=True)
        second = torch.autograd.grad(sum((g * torch.sin(7 * g.detach())).sum() for g in gradients), (r, p))
        results.append((features, *gradients, *second))
    for want, got in zip(*results, strict=True):
        assert_close(got.detach(), want.detach(), TOLERANCE)


def test_counter_charge_of_a_slab(generator):
    torch.set_default_dtype(torch.float64)
    module = graph_longrange_044()
    positions, cells, batch_idx, rows = random_batch([20], generator, net_charge=True)
    cells[0, 2, 2] += 30.0  # so high that Gaussians end
    bounds = (1.0, 9.0)
    arguments = reciprocal_arguments(module, CUTOFF, cells)
    pbc = torch.tensor([[True, True, False]])
    coulomb = Coulomb(boundary="slab", kspace_cutoff=CUTOFF, compat="graph_longrange", order="e3nn")
    geometry = coulomb.prepare(positions, cells, pbc, batch_idx, counter_charge=bounds)
    common = {
        "source_feats": rows,
        "node_positions": positions,
        "batch": batch_idx,
        "pbc": pbc,
        **arguments,
    }
    energy = module.jellium_energy.JelliumSlabSolvatedEnergy(1, 1.5, CUTOFF, bounds)(**common)
    assert_close(geometry.energy(rows), energy, TOLERANCE)
    features = module.jellium_features.JelliumSlabSolvatedFeatures(
        1, 1.5, 1, WIDTHS, CUTOFF, bounds, include_self_interaction=False
    )(**common)
    assert_close(geometry.features(rows, widths=WIDTHS), features, TOLERANCE)
