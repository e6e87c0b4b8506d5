"""Pair sums of Gaussian multipoles: both paths against the reference, with derivatives, every rank."""

from functools import cache

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, pointers, scattered, submodule, system_of
from scfmlip_kernels import backend, gaussian_pairs, recent
from scfmlip_kernels.gaussian_pairs.reference import gaussian_pairs_reference
from scfmlip_kernels.lattice import monomial_count, monomials

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
SIZES = [3, 0, 2, 1]
WIDTHS = torch.tensor([1.3, 2.1], dtype=F64)
# source rank and rank of the result, softening and atoms per group
RANKS = [(s, t) for s in (0, 1, 2) for t in (0, 1, 2)]
SOFTENED = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


def problem(sizes, source_rank, n_widths=1, n_channels=1, seed=5):
    """Positions and moments that float32 holds exactly, so that one reference serves both dtypes."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    positions = 5.0 * torch.rand(n, 3, generator=generator, dtype=F64) - 2.0
    moments = torch.randn(
        n, n_channels, n_widths, monomial_count(source_rank), generator=generator, dtype=F64
    )
    return positions.float().double(), moments.float().double()


@cache
def reference(source_rank, rank, softening=0.0, group_size=1, sizes=tuple(SIZES)):
    """Slow, nested autograd: once per combination."""
    positions, moments = problem(sizes, source_rank)
    systems = system_of(sizes)
    return gaussian_pairs_reference(positions, moments, WIDTHS[:1], systems, rank, softening, group_size)


def assert_equal_by_degree(got, want, rank, tolerance=None):
    assert got.shape == want.shape
    degrees = torch.tensor([sum(m) for m in monomials(rank)])
    for degree in range(rank + 1):
        assert_close(got.cpu()[..., degrees == degree], want.cpu()[..., degrees == degree], tolerance)


def place(path, device):
    return "cpu" if path == "cpu" else device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("source_rank", "rank"), RANKS)
@pytest.mark.parametrize("path", PATHS)
def test_values(path, source_rank, rank, dtype, device):
    positions, moments = (x.to(place(path, device), dtype) for x in problem(SIZES, source_rank))
    got = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(SIZES), rank)
    assert got.dtype == dtype
    # atoms 1.5 angstrom apart: the reference's nested autograd keeps 11 digits of fourth derivatives
    assert_equal_by_degree(
        got, reference(source_rank, rank), rank, 1e-11 if dtype == F64 and source_rank + rank > 2 else None
    )


@pytest.mark.parametrize(("group_size", "sizes"), [(1, (3, 0, 2)), (2, (4, 0, 2))])
@pytest.mark.parametrize(("source_rank", "rank"), SOFTENED)
@pytest.mark.parametrize("path", PATHS)
def test_softened_values(path, source_rank, rank, group_size, sizes, device):
    positions, moments = (x.to(place(path, device)) for x in problem(sizes, source_rank))
    got = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank, 0.05, group_size)
    assert_equal_by_degree(got, reference(source_rank, rank, 0.05, group_size, sizes), rank, 1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_groups_are_numbered_through_the_batch(path, device):
    """Atoms 2 n and 2 n + 1 of the batch are a group, also behind a system of three atoms."""
    positions, moments = (x.to(place(path, device)) for x in problem([3, 4], 0))
    got = gaussian_pairs(positions, moments, WIDTHS[:1], pointers([3, 4]), 0, group_size=2)
    assert_close(got.cpu(), reference(0, 0, 0.0, 2, (3, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_channels_and_widths_are_independent(path, dtype, device):
    positions, moments = problem(SIZES, 1, n_widths=2, n_channels=3)
    positions, moments = (x.to(place(path, device), dtype) for x in (positions, moments))
    ptr = pointers(SIZES)
    together = gaussian_pairs(positions, moments, WIDTHS, ptr, 1)
    for c in range(3):
        for w in range(2):
            one = moments[:, c : c + 1, w : w + 1]
            alone = gaussian_pairs(positions, one, WIDTHS[w : w + 1], ptr, 1)
            assert_close(together[:, c : c + 1, w : w + 1], alone)


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_is_its_systems(path, device):
    sizes = [4, 0, 7, 1]
    positions, moments = (x.to(place(path, device)) for x in problem(sizes, 1))
    together = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), 1)
    for i in range(len(sizes)):
        atoms = system_of(sizes) == i
        mine = (positions[atoms], moments[atoms])
        alone = gaussian_pairs(*mine, WIDTHS[:1], torch.tensor([0, sizes[i]]), 1)
        assert_close(together[atoms], alone)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [1], [1, 1]])
@pytest.mark.parametrize("path", PATHS)
def test_nobody_to_interact_with(path, sizes, device):
    positions, moments = (x.to(place(path, device)) for x in problem(sizes, 1))
    got = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), 1)
    assert got.shape == (sum(sizes), 1, 1, 4)
    assert not got.any()


@pytest.mark.parametrize("path", PATHS)
def test_no_channels_and_no_widths(path, device):
    positions, moments = (x.to(place(path, device)) for x in problem([3], 1))
    ptr = pointers([3])
    assert gaussian_pairs(positions, moments[:, :0], WIDTHS[:1], ptr, 1).shape == (3, 0, 1, 4)
    assert gaussian_pairs(positions, moments[:, :, :0], WIDTHS[:0], ptr, 1).shape == (3, 1, 0, 4)


@pytest.mark.parametrize("pairs_per_chunk", [1, 12, 13, 21])
def test_chunks_of_targets(pairs_per_chunk, monkeypatch):
    """Chunks of one target, of two, and one that is left over."""
    sizes = [5, 1, 0, 7]
    positions, moments = problem(sizes, 1, n_widths=2)
    whole = gaussian_pairs(positions, moments, WIDTHS, pointers(sizes), 2)
    cpu = submodule("gaussian_pairs.cpu")
    monkeypatch.setattr(cpu, "_CHUNK_PAIRS", pairs_per_chunk)
    for kept_bytes in (cpu._KEPT_BYTES, 0):
        recent.clear()
        monkeypatch.setattr(cpu, "_KEPT_BYTES", kept_bytes)
        assert_close(gaussian_pairs(positions, moments, WIDTHS, pointers(sizes), 2), whole)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softening", [0.0, 0.3])
@pytest.mark.parametrize(("source_rank", "rank"), [(0, 0), (1, 0), (0, 2), (1, 2), (2, 1)])
def test_what_is_kept_of_a_geometry(source_rank, rank, softening, dtype, at_once, monkeypatch):
    """The same sums the second and third time, others after a change in place or of groups."""
    sizes = [5, 1, 0, 7]
    positions, moments = (x.to(dtype) for x in problem(sizes, source_rank, n_widths=2))
    cpu = submodule("gaussian_pairs.cpu")
    recent.clear()
    monkeypatch.setattr(cpu, "_FEW_BYTES", cpu._KEPT_BYTES if at_once else 0)

    def check(group_size=1):
        arguments = (positions, moments, WIDTHS, pointers(sizes), rank, softening, group_size)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_KEPT_BYTES", -1)
            want = gaussian_pairs(*arguments)
        for _ in range(3):
            assert_close(gaussian_pairs(*arguments), want)

    check()
    moments.neg_()
    check()
    positions.mul_(1.1)
    check()
    check(group_size=3)
    assert len(cpu._recent.entries()) <= cpu._recent.most


@pytest.mark.interpreter
@pytest.mark.parametrize(("source_rank", "rank"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)])
def test_block_edges(source_rank, rank, device):
    """Blocks of 64 targets and 16 or 8 sources: one less, one more, none, one and a bit."""
    sizes = [63, 64, 0, 65, 31, 33, 1]
    positions, moments = problem(sizes, source_rank)
    with backend("cpu"):
        want = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank)
    got = gaussian_pairs(positions.to(device), moments.to(device), WIDTHS[:1], pointers(sizes), rank)
    assert_equal_by_degree(got, want, rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_far_apart(path, dtype, device):
    """A thousand widths away erf is 1 and the Gaussian's tail is nothing: a point charge is left."""
    positions = torch.tensor([[0.0, 0, 0], [3000.0, -2000, 1000]], dtype=dtype, device=place(path, device))
    moments = torch.tensor([[[[0.0]]], [[[2.0]]]], dtype=dtype, device=positions.device)
    got = gaussian_pairs(positions, moments, WIDTHS[:1], pointers([2]), 2)[0, 0, 0].cpu()
    r = (positions[0] - positions[1]).double().cpu()
    d = r.norm()
    second = 3 * torch.outer(r, r) / d**5 - torch.eye(3, dtype=F64) / d**3
    want = 2 * torch.cat(((1 / d)[None], -r / d**3, second[0], second[1, 1:], second[2, 2:]))
    assert_equal_by_degree(got[None, None, None], want[None, None, None], 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_symmetric(path, dtype, device):
    """<a, T b> = <T a, b>, so energies know no order and forces add up to 0."""
    positions, a = (x.to(place(path, device), dtype) for x in problem([9, 4], 1))
    b = a.flip(0).contiguous()
    ptr = pointers([9, 4])
    left = (a * gaussian_pairs(positions, b, WIDTHS[:1], ptr, 1)).double()
    right = (b * gaussian_pairs(positions, a, WIDTHS[:1], ptr, 1)).double()
    error = (left.sum() - right.sum()).abs() / left.abs().sum()
    assert float(error) < {torch.float32: 2e-7, F64: 1e-14}[dtype]
    r = positions.clone().requires_grad_()
    energy = (a * gaussian_pairs(r, a, WIDTHS[:1], ptr, 1)).sum()
    (force,) = torch.autograd.grad(energy, r)
    scale = force.abs().max()
    for atoms in (slice(0, 9), slice(9, 13)):
        assert (
            float(force[atoms].double().sum(0).abs().max() / scale) < {torch.float32: 2e-6, F64: 1e-13}[dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_second_derivatives_on_both_paths(path, dtype, device):
    """Backward and double backward of the kernel against those of the CPU path in float64."""
    positions, moments = problem([4, 0, 3], 1)
    ptr = pointers([4, 0, 3])

    def both(r, m):
        r, m = r.clone().requires_grad_(), m.clone().requires_grad_()
        return derivatives(gaussian_pairs(r, m, WIDTHS[:1], ptr, 1) ** 2, (r, m), 2)

    got = both(*(x.to(place(path, device), dtype) for x in (positions, moments)))
    with backend("cpu"):
        want = both(positions, moments)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert_close(a.cpu(), b)


@pytest.mark.parametrize("source_rank", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_gradcheck(source_rank, rank):
    positions, moments = problem([2, 1], source_rank)
    positions.requires_grad_()
    moments.requires_grad_()

    def value(r, m):
        return gaussian_pairs(r, m, WIDTHS[:1], pointers([2, 1]), rank)

    assert torch.autograd.gradcheck(value, (positions, moments))
    assert torch.autograd.gradgradcheck(value, (positions, moments))


def test_third_derivatives():
    """Differentiable any number of times: the gradient's own gradgradcheck."""
    positions, moments = problem([2], 1)
    positions.requires_grad_()

    def gradient(r):
        value = gaussian_pairs(r, moments, WIDTHS[:1], pointers([2]), 0)
        return torch.autograd.grad(value.square().sum(), r, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (positions,))


def test_softened_gradcheck():
    """Four points an atom, as the finite-difference open boundary uses them: order 2 of 3 is left."""
    positions, moments = problem([8], 0)
    positions.requires_grad_()
    moments.requires_grad_()

    def value(r, m):
        return gaussian_pairs(r, m, WIDTHS[:1], pointers([8]), 0, softening=0.01, group_size=4)

    assert torch.autograd.gradcheck(value, (positions, moments))
    assert torch.autograd.gradgradcheck(value, (positions, moments), fast_mode=True)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradient_in_one_argument_only(wanted):
    grads = []
    for wants in (wanted, (True, True)):
        positions, moments = problem([3, 2], 1)
        positions.requires_grad_(wants[0])
        moments.requires_grad_(wants[1])
        gaussian_pairs(positions, moments, WIDTHS[:1], pointers([3, 2]), 1).sin().sum().backward()
        grads.append((positions.grad, moments.grad))
    for one, both, wants in zip(*grads, wanted, strict=True):
        assert (one is None) != wants
        if wants:
            assert_close(one, both)


@pytest.mark.parametrize("softening", [0.0, 0.1])
def test_opcheck(softening):
    torch.use_deterministic_algorithms(False)
    for dtype in DTYPES:
        positions, moments = (x.to(dtype).requires_grad_() for x in problem([2, 0, 3], 0))
        arguments = (positions, moments, WIDTHS[:1], pointers([2, 0, 3]), 1, softening, 1)
        torch.library.opcheck(torch.ops.scfmlip.gaussian_pairs.default, arguments)


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, device):
    positions, moments = (x.to(place(path, device)) for x in problem([5, 3], 1))
    results = []
    for layout in (scattered, torch.clone):
        r, m = layout(positions).requires_grad_(), layout(moments).requires_grad_()
        value = gaussian_pairs(r, m, WIDTHS[:1], pointers([5, 3]), 1)
        # an expanded gradient has strides of 0
        results.append((value, *torch.autograd.grad(value.sum(), (r, m))))
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_refuses():
    positions, moments = problem([3], 1)
    ptr = pointers([3])
    with pytest.raises(TypeError, match=r"moments is torch\.float32, positions is torch\.float64"):
        gaussian_pairs(positions, moments.float(), WIDTHS[:1], ptr, 0)
    with pytest.raises(TypeError, match="float32 or float64"):
        gaussian_pairs(positions.half(), moments.half(), WIDTHS[:1], ptr, 0)
    with pytest.raises(ValueError, match=r"moments must be \[3, n_channels, 2, n_monomials\]"):
        gaussian_pairs(positions, moments, WIDTHS, ptr, 0)
    with pytest.raises(ValueError, match=r"got \[2, 1, 1, 4\]"):
        gaussian_pairs(positions, moments[:2], WIDTHS[:1], ptr, 0)
    with pytest.raises(ValueError, match="monomials of one rank"):
        gaussian_pairs(positions, moments[..., :3], WIDTHS[:1], ptr, 0)


@pytest.mark.parametrize("wrong", ["positions", "pointers"])
def test_refuses_sizes_that_do_not_fit(wrong):
    """Shapes that do not fit together raise; atoms must not be left out in silence."""
    positions, moments = problem([3], 1)
    ptr = pointers([3])
    if wrong == "positions":
        positions = torch.cat((positions, positions), -1)
    else:
        ptr = pointers([2])
    with pytest.raises(ValueError, match="gaussian_pairs"):
        gaussian_pairs(positions, moments, WIDTHS[:1], ptr, 0)


@pytest.mark.parametrize("path", PATHS)
def test_softened_sums_end_at_order_three(path, device):
    positions, moments = (x.to(place(path, device)) for x in problem([3], 2))
    with pytest.raises(NotImplementedError, match="order 3, not 4"):
        gaussian_pairs(positions, moments, WIDTHS[:1], pointers([3]), 2, softening=0.1)
    r = positions.requires_grad_()
    value = gaussian_pairs(r, moments, WIDTHS[:1], pointers([3]), 1, softening=0.1)
    with pytest.raises(NotImplementedError, match="order 3, not 4"):
        value.sum().backward()


@pytest.mark.interpreter
@pytest.mark.parametrize("rank", [0, 2])
def test_splits_of_the_sources_add_up(rank, monkeypatch, device):
    """Several programs for one target, as small systems get on a GPU; some have no source."""
    sizes = (70, 0, 3)
    positions, moments = (x.to(device) for x in problem(sizes, 1, n_channels=2))
    whole = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank)
    monkeypatch.setattr(submodule("gaussian_pairs.kernel"), "splits_for", lambda *_: 4)
    parts = gaussian_pairs(positions, moments, WIDTHS[:1], pointers(sizes), rank)
    assert_equal_by_degree(parts, whole, rank, 1e-13)
