"""Between structure factors and series: both paths against plain formulas, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import PATHS, derivatives, random_cells
from scfmlip_kernels import wave_coefficients, wave_energies, wave_weights
from scfmlip_kernels.wave_weights.reference import (
    wave_coefficients_reference,
    wave_energies_reference,
    wave_weights_reference,
)

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def waves_of(generator, sizes=(5, 0, 4), device="cpu"):
    """Inverse cells and volumes, waves with the origin among them, and slabs that are cut off or not."""
    cells = random_cells(len(sizes), generator)
    axis = torch.arange(len(sizes)) % 3
    for i, a in enumerate(axis.tolist()):  # the open vector along the normal
        b, c = (cells[i, (a + j) % 3] for j in (1, 2))
        normal = torch.linalg.cross(b, c)
        cells[i, a] = 7.0 * normal / normal.norm()
    system = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    miller = torch.randint(-2, 3, (len(system), 3), generator=generator, dtype=torch.int32)
    miller[:3] = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1]])
    weight = torch.where((miller == 0).all(1), 0.0, 1 + torch.rand(len(system), generator=generator)).double()
    height = torch.full((len(sizes),), 7.0, dtype=F64)
    height[-1] = 0.0
    volume, inverse = torch.linalg.det(cells).abs(), torch.linalg.inv(cells)
    return tuple(t.to(device) for t in (inverse, volume, miller, system, weight, height, axis))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("sizes", [(5, 0, 4), (130,), (7, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_weights_and_derivatives(path, sizes, cut, generator, device):
    inverse, volume, *rest = waves_of(generator, sizes, "cpu" if path == "cpu" else device)
    tables = rest if cut else rest[:3]
    leaves = (inverse.requires_grad_(), volume.requires_grad_())
    value = wave_weights(*leaves, *tables)
    want = wave_weights_reference(*leaves, *tables)
    assert_close(value[:, 0], want[:, 0])
    assert_close(value[:, 1], want[:, 1])
    for order in (1, 2):  # the kernel of the derivative, and formulas that are differentiated again
        for a, b in zip(derivatives(value, leaves, order), derivatives(want, leaves, order), strict=True):
            assert_close(a, b, 1e-11)  # the part of k across the open axis is a difference
        value, want = wave_weights(*leaves, *tables), wave_weights_reference(*leaves, *tables)


def sums_of(generator, n_points=9, n_channels=2, n_widths=2, device="cpu"):
    sums = torch.randn(n_points, n_channels, n_widths, 2, generator=generator, dtype=F64)
    waves = torch.rand(n_points, 2, generator=generator, dtype=F64)
    window = 0.5 + torch.rand(n_points, generator=generator, dtype=F64)
    return tuple(t.to(device) for t in (sums, waves, window))


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("sizes", [(9, 2, 2), (130, 1, 1), (0, 1, 1), (5, 0, 1)])
@pytest.mark.parametrize("path", PATHS)
def test_sums_and_derivatives(path, sizes, windowed, generator, device):
    sums, waves, window = sums_of(generator, *sizes, "cpu" if path == "cpu" else device)
    leaves = (sums.requires_grad_(), waves.requires_grad_())
    rest = (window if windowed else None, (1.5, 0.7)[: sizes[2]])
    for run, reference, receivers in (
        (wave_energies, wave_energies_reference, ()),
        (wave_coefficients, wave_coefficients_reference, ((1.5, 3.0, 0.4),)),
    ):
        for order in (1, 2):
            value, want = run(*leaves, *rest, *receivers), reference(*leaves, *rest, *receivers)
            assert_close(value, want)
            for a, b in zip(derivatives(value, leaves, order), derivatives(want, leaves, order), strict=True):
                assert_close(a, b)


def test_gradcheck(generator):
    inverse, volume, *tables = waves_of(generator)
    leaves = (inverse.requires_grad_(), volume.requires_grad_())
    sums, waves, window = sums_of(generator, 4)
    pair = (sums.requires_grad_(), waves.requires_grad_())
    for run, given in (
        (lambda *t: wave_weights(*t, *tables), leaves),
        (lambda *t: wave_energies(*t, window, (1.5, 0.7)), pair),
        (lambda *t: wave_coefficients(*t, window, (1.5, 0.7), (0.4,)), pair),
    ):
        assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, given)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    inverse, volume, *tables = waves_of(generator)
    leaves = (inverse.requires_grad_(), volume.requires_grad_())
    torch.library.opcheck(torch.ops.scfmlip.wave_weights.default, (*leaves, *tables))
    sums, waves, window = sums_of(generator)
    pair = (sums.requires_grad_(), waves.requires_grad_())
    torch.library.opcheck(torch.ops.scfmlip.wave_sums.default, (*pair, window, [1.5, 0.7], None))
    torch.library.opcheck(torch.ops.scfmlip.wave_sums.default, (*pair, None, [1.5, 0.7], [0.4]))


def test_refuses(generator):
    inverse, volume, *tables = waves_of(generator)
    with pytest.raises(ValueError, match="inverse must be float64"):
        wave_weights(inverse.float(), volume, *tables)
    with pytest.raises(ValueError, match=r"volume must be \[3\]"):
        wave_weights(inverse, volume[:1], *tables)
    sums, waves, window = sums_of(generator)
    with pytest.raises(ValueError, match=r"sums must be \[n_points, n_channels, 1, 2\]"):
        wave_energies(sums, waves, window, (1.0,))
    with pytest.raises(ValueError, match=r"window must be \[9\]"):
        wave_coefficients(sums, waves, window[1:], (1.0, 2.0), (1.0,))
