"""Pair sums' kernel of high ranks, which second derivatives of dipoles and quadrupoles need."""

import pytest
import torch
from tolerances import RELATIVE, assert_close

from kernels.problems import DTYPES, PATHS, derivatives, pointers, submodule
from kernels.test_gaussian_pairs import assert_equal_by_degree, place, problem
from scfmlip_kernels import backend, gaussian_pairs, pair_tiles
from scfmlip_kernels.gaussian_pairs.reference import gaussian_pairs_reference
from scfmlip_kernels.lattice.directions import forces, raised, scaled_forces, shifted_along

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
WIDTHS = torch.tensor([1.3, 2.1], dtype=F64)
HIGH = [(s, r) for s in range(4) for r in range(5) if s + r < 7 and not (s < 2 and r < 3)]


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("source_rank", "rank"), HIGH)
def test_values(source_rank, rank, dtype, device, monkeypatch):
    """Two widths, two channels, systems of no and one atom, blocks of sources one more than full."""
    sizes = [5, 0, 1, 9]
    positions, moments = problem(sizes, source_rank, n_widths=2, n_channels=2)
    with backend("cpu"):
        want = gaussian_pairs(positions, moments, WIDTHS, pointers(sizes), rank)
    chunked = submodule("gaussian_pairs.op")
    monkeypatch.setattr(chunked, "gaussian_pairs_chunked", None)  # the kernel it is
    got = gaussian_pairs(
        positions.to(device, dtype), moments.to(device, dtype), WIDTHS, pointers(sizes), rank
    )
    assert got.dtype == dtype
    # float32 positions: of the high degrees' own largest value
    assert_equal_by_degree(got, want, rank, None if dtype == F64 else 5e-6)


@pytest.mark.interpreter
@pytest.mark.parametrize(("source_rank", "rank"), [(1, 3), (2, 2)])
def test_against_nested_autograd(source_rank, rank, device):
    """As far apart as its own numbers are good."""
    positions, moments = problem([3], source_rank)
    positions = 1.5 * positions
    want = gaussian_pairs_reference(positions, moments, WIDTHS[:1], torch.zeros(3), rank)
    got = gaussian_pairs(positions.to(device), moments.to(device), WIDTHS[:1], pointers([3]), rank)
    assert_equal_by_degree(got, want, rank, 1e-10)


@pytest.mark.interpreter
def test_coincident_and_far_atoms(device):
    """Both branches of the Boys functions, and no distance at all."""
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 2.6, 0], [30.0, 40, 0]], dtype=F64)
    _, moments = problem([4], 2)
    with backend("cpu"):
        want = gaussian_pairs(positions, moments, WIDTHS[:1], pointers([4]), 3)
    got = gaussian_pairs(positions.to(device), moments.to(device), WIDTHS[:1], pointers([4]), 3)
    assert_equal_by_degree(got, want, 3)


@pytest.mark.interpreter
@pytest.mark.parametrize("rank", [2, 3])
def test_splits_add_up(rank, monkeypatch, device):
    sizes = (70, 0, 3)
    positions, moments = (x.to(device) for x in problem(sizes, 2))
    whole = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank)
    monkeypatch.setattr(submodule("gaussian_pairs.kernel"), "splits_for", lambda *_: 3)
    parts = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank)
    assert_equal_by_degree(parts, whole, rank, 1e-13)


@pytest.mark.interpreter
@pytest.mark.parametrize("source_rank", [0, 1, 2])
def test_second_derivatives(source_rank, device, monkeypatch):
    """What a training step on forces asks for, by the kernels alone, against the CPU path."""
    sizes = [4, 0, 3]
    positions, moments = problem(sizes, source_rank, n_widths=2)

    def both(r, m):
        r, m = r.clone().requires_grad_(), m.clone().requires_grad_()
        rank = source_rank
        return derivatives(gaussian_pairs(r, m, WIDTHS, pointers(sizes), rank) ** 2, (r, m), 2)

    with backend("cpu"):
        want = both(positions, moments)
    monkeypatch.setattr(submodule("gaussian_pairs.op"), "gaussian_pairs_chunked", None)
    for a, b in zip(both(positions.to(device), moments.to(device)), want, strict=True):
        assert_close(a.cpu(), b)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("source_rank", "rank"),
    [(0, 1), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_gradgradcheck_of_the_kernels(source_rank, rank, device):
    positions, moments = (x.to(device).requires_grad_() for x in problem([2, 1], source_rank))

    def value(r, m):
        return gaussian_pairs(r, m, WIDTHS[:1], pointers([2, 1]), rank)

    assert torch.autograd.gradcheck(value, (positions, moments), fast_mode=True)
    assert torch.autograd.gradgradcheck(value, (positions, moments), fast_mode=True)


def test_tiles():
    """Given tiles are used, and checked."""
    positions, moments = problem([3], 1)
    ptr = pointers([3])
    tiles = pair_tiles(ptr, positions.device)
    want = gaussian_pairs(positions, moments, WIDTHS[:1], ptr, 1)
    assert_close(gaussian_pairs(positions, moments, WIDTHS[:1], ptr, 1, tiles=tiles), want)
    assert pair_tiles(ptr, positions.device, 4).tolist() == [[0, 0, 12]]
    with pytest.raises(ValueError, match=r"tiles must be \[n_tiles, 3\]"):
        gaussian_pairs(positions, moments, WIDTHS[:1], ptr, 1, tiles=tiles[0])
    with pytest.raises(TypeError, match="tiles must be int32"):
        gaussian_pairs(positions, moments, WIDTHS[:1], ptr, 1, tiles=tiles.long())
    arguments = (positions.requires_grad_(), moments, WIDTHS[:1], ptr, 1, 0.0, 1, tiles)
    torch.library.opcheck(torch.ops.scfmlip.gaussian_pairs.default, arguments)


def directions_problem(device, dtype, rank):
    generator = torch.Generator().manual_seed(3)
    count = [1, 4, 10, 20]
    own = torch.randn(5, 2, 3, count[rank], generator=generator, dtype=dtype).to(device)
    field = torch.randn(5, 2, 3, count[rank + 1], generator=generator, dtype=dtype).to(device)
    along = torch.randn(5, 3, generator=generator, dtype=dtype).to(device)
    return own, field, along


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.interpreter
def test_directions(dtype, rank, device):
    """The kernels against plain PyTorch, and strides of any kind."""
    own, field, along = directions_problem("cpu", dtype, rank)
    scattered = (own.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), along.T.contiguous().T)
    calls = (
        lambda a, f, d: forces(a, f),
        lambda a, f, d: scaled_forces(a, f, 2.5),
        lambda a, f, d: shifted_along(f, d, rank),
        lambda a, f, d: raised(a, d, -0.5),
        lambda a, f, d: raised(a, d.double()),
    )
    for call in calls:
        with backend("cpu"):
            want = call(own, field, along)
        got = call(scattered[0].to(device), field.to(device), scattered[1].to(device))
        assert got.dtype == want.dtype
        assert_close(got.cpu(), want, RELATIVE[dtype])  # float64 sums of float32 numbers


@pytest.mark.parametrize("path", PATHS)
def test_directions_are_closed_under_differentiation(path, device):
    own, field, along = (t.requires_grad_() for t in directions_problem(place(path, device), F64, 1))
    for call, arguments in (
        (lambda a, f: scaled_forces(a, f, 2.5), (own, field)),
        (lambda f, d: shifted_along(f, d, 1), (field, along)),
        (lambda a, d: raised(a, d, -0.5), (own, along)),
    ):
        assert torch.autograd.gradcheck(call, arguments, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


def test_directions_opcheck():
    own, field, along = (t.requires_grad_() for t in directions_problem("cpu", F64, 1))
    torch.library.opcheck(torch.ops.scfmlip.lattice_forces.default, (own, field, 2.0, True))
    torch.library.opcheck(torch.ops.scfmlip.shifted_along.default, (field, along, 2.0))
    torch.library.opcheck(torch.ops.scfmlip.raised.default, (own, along, 2.0))
