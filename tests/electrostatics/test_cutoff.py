"""How many wave vectors a tolerance needs: what the options promise about truncation."""

import math

import pytest
import torch

from electrostatics.systems import boundary_case
from scfmlip import Coulomb
from scfmlip.electrostatics.cutoff import (
    WORST_TAIL,
    check_cutoff,
    cutoff_for_tolerance,
    reference_cutoff,
    truncation_error,
)
from scfmlip.units import COULOMB_CONSTANT

F64 = torch.float64


@pytest.mark.parametrize("l_max", [0, 1])
@pytest.mark.parametrize(("s", "cutoff"), [(1.5, 1.0), (1.5, 2.6), (0.4, 8.0)])
def test_the_tail_of_a_pair(s, cutoff, l_max):
    """``(2 k_e / pi) int (1 + s^2 k^2) exp(-s^2 k^2) dk``: the whole integral is erf(r / 2 s) / r at 0."""
    k = torch.linspace(cutoff, cutoff + 12 / s, 200001, dtype=F64)
    y = (1 + l_max * (s * k) ** 2) * torch.exp(-((s * k) ** 2))
    want = 2 * COULOMB_CONSTANT / math.pi * float(torch.trapezoid(y, k))
    assert abs(truncation_error(s**2, cutoff, l_max) / want - 1) < 1e-7


@pytest.mark.parametrize("l_max", [0, 1])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-12])
@pytest.mark.parametrize("s", [0.2, 1.5, 6.0])
def test_the_smallest_cutoff(s, tolerance, l_max):
    cutoff = cutoff_for_tolerance(s**2, tolerance, l_max)
    assert truncation_error(s**2, cutoff, l_max) <= tolerance
    assert truncation_error(s**2, 0.999 * cutoff, l_max) > tolerance


def test_cutoffs_scale_as_they_must():
    """Narrower Gaussians and tighter tolerances need more; dipoles more than charges."""
    assert Coulomb(sigma=0.7).cutoff > Coulomb(sigma=1.5).cutoff
    assert Coulomb(tolerance=1e-9).cutoff > Coulomb().cutoff
    assert Coulomb(l_max=1).cutoff > Coulomb(l_max=0).cutoff
    assert Coulomb(sigma=(1.5, 0.7)).cutoff == Coulomb(sigma=0.7).cutoff
    assert Coulomb(feature_widths=(0.5, 3.0)).cutoff > Coulomb().cutoff
    assert Coulomb(feature_widths=(2.0, 3.0)).cutoff == Coulomb().cutoff
    assert Coulomb(kspace_cutoff=3.3).cutoff == 3.3


def test_the_reference_rule():
    """``1.5 * 2.25 (l_max + 1)^0.3 / min(widths)``: 2.7701 for the published models."""
    assert abs(reference_cutoff((1.5, 3.0), 1) - 2.7701) < 1e-4
    assert abs(Coulomb(compat="graph_longrange", feature_widths=(1.5, 3.0)).cutoff - 2.7701) < 1e-4


def test_the_limit_of_what_is_refused():
    limit = cutoff_for_tolerance(1.5**2, WORST_TAIL, 1)
    check_cutoff(1.5**2, 1.001 * limit, 1)
    with pytest.raises(ValueError, match="too small"):
        check_cutoff(1.5**2, 0.999 * limit, 1)


def worst_pair(edge, sigma, tolerance, row):
    """Largest change of a pair's energy under a tighter cutoff, over places of the second in the cell."""
    cell = edge * torch.eye(3, dtype=F64)
    steps = torch.tensor([0.0, 0.25, 0.5], dtype=F64)
    places = torch.cartesian_prod(steps, steps, steps) * edge
    n = len(places)
    positions = torch.stack((torch.zeros_like(places), places), 1).view(-1, 3)
    index = torch.arange(n).repeat_interleave(2)
    values = torch.tensor(row, dtype=F64).expand(2 * n, -1).contiguous()
    pairs = []
    for tight in (tolerance, 1e-13):
        operator = Coulomb(l_max=0 if len(row) == 1 else 1, sigma=sigma, tolerance=tight)
        together = operator.prepare(positions, cell.expand(n, 3, 3), True, index).energy(values)
        alone = operator.prepare(positions[:1], cell).energy(values[:1])
        pairs.append(together - 2 * alone)
    return float((pairs[0] - pairs[1]).abs().max())


# the worst cubes of a scan from 1.5 to 12 widths in steps of 2 per cent, at 1e-3 and 1e-6 eV
WORST_CUBES = [
    (1.5, 10.87, 1e-6),
    (1.5, 9.65, 1e-3),
    (0.8, 8.75, 1e-3),
    (1.5, 5.22, 1e-3),
    (0.8, 5.0, 1e-6),
    (1.5, 3.81, 1e-6),
    (1.5, 2.365, 1e-3),
    (1.5, 1.69, 1e-6),
]


@pytest.mark.parametrize(("sigma", "widths", "tolerance"), WORST_CUBES)
def test_a_pair_of_unit_charges(sigma, widths, tolerance):
    """The tolerance, times what is documented for small cells, where single shells stand out."""
    factor = next(f for edge, f in ((8, 1.5), (4, 3.5), (3, 5.5), (0, 11)) if widths > edge)
    assert worst_pair(widths * sigma, sigma, tolerance, [1.0]) <= factor * tolerance


@pytest.mark.parametrize(("sigma", "edge"), [(0.4, 5.0), (1.5, 5.0), (1.5, 6.0), (1.5, 8.0)])
def test_a_pair_of_unit_dipoles(sigma, edge):
    """The unit of a dipole is 1 e times the width of its Gaussian; no more than the tolerance."""
    assert worst_pair(edge, sigma, 1e-4, [0.0, 0.0, 0.0, sigma]) <= 1e-4


@pytest.mark.parametrize("name", ["crystal", "charged slab", "molecule in a box"])
def test_features_hold_the_tolerance(name, generator):
    """Widths that were announced are resolved as well as the energy."""
    case = boundary_case(name, generator)
    widths = (0.4, 1.5)
    loose = case.geometry(feature_widths=widths).features(case.rows)
    tight = case.geometry(feature_widths=widths, tolerance=1e-13).features(case.rows)
    scale = torch.tensor([math.sqrt(4 * math.pi)] * 2, dtype=F64)
    gradients = torch.tensor([math.sqrt(1.5) * math.pi * w for w in widths], dtype=F64)
    scale = torch.cat((scale, gradients.repeat_interleave(3)))
    error = ((loose - tight) / scale).abs().max()
    assert float(error) < 1e-5 * float(case.rows.abs().sum())


def test_no_more_wave_vectors_than_the_volume_asks_for():
    """``V k_c^3 / 12 pi^2`` of them: the cost that ARCHITECTURE.md counts with."""
    cell = torch.tensor([[12.0, 0, 0], [3.0, 11.0, 0], [-2.0, 4.0, 13.0]], dtype=F64)
    plan = Coulomb().plan(cell, None, None, 100)
    count = int((plan.lattice.grid.weight > 0).sum())
    estimate = float(torch.linalg.det(cell)) * plan.resolution**3 / (12 * math.pi**2)
    assert abs(count / estimate - 1) < 0.1
    assert plan.lattice.grid.n_points < 3 * count
