"""Sums over listed pairs: both paths against the reference, with derivatives, and against all pairs."""

import math

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, submodule
from scfmlip_kernels import gaussian_pairs, listed_pairs, recent, sort_pairs
from scfmlip_kernels.lattice import monomial_count, monomials
from scfmlip_kernels.listed_pairs.reference import listed_pairs_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
WIDTHS = torch.tensor([[0.7, 1.6], [1.3, math.inf]], dtype=F64)


def problem(source_rank, n_targets=4, n_sources=6, n_channels=1, n_widths=1, listed=0.6, seed=3):
    """Points, moments that float32 holds exactly, and a list of some of the pairs."""
    generator = torch.Generator().manual_seed(seed)
    targets = 4 * torch.rand(n_targets, 3, generator=generator, dtype=F64)
    sources = 4 * torch.rand(n_sources, 3, generator=generator, dtype=F64)
    shape = (n_sources, n_channels, n_widths, monomial_count(source_rank))
    moments = torch.randn(shape, generator=generator, dtype=F64)
    seen = torch.rand(n_targets, n_sources, generator=generator) < listed
    target, source = torch.nonzero(seen).T
    order = torch.randperm(len(target), generator=generator)
    pairs = sort_pairs(target[order], source[order], n_targets, n_sources)
    return *(x.float().double() for x in (targets, sources, moments)), pairs


def moved(problem, device, dtype):
    *points, pairs = problem
    return *(x.to(device, dtype) for x in points), type(pairs)(*(p.to(device) for p in pairs))


def place(path, device):
    return "cpu" if path == "cpu" else device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("source_rank", [0, 1])
@pytest.mark.parametrize("path", PATHS)
def test_values(path, source_rank, rank, dtype, device):
    given = problem(source_rank, n_channels=2, n_widths=2)
    want = listed_pairs_reference(*given[:3], WIDTHS, given[3], rank)
    targets, sources, moments, pairs = moved(given, place(path, device), dtype)
    got = listed_pairs(targets, sources, moments, WIDTHS, pairs, rank)
    assert got.dtype == dtype
    degrees = torch.tensor([sum(m) for m in monomials(rank)])
    for degree in range(rank + 1):  # the reference's nested autograd keeps 11 digits
        assert_close(
            got.cpu()[..., degrees == degree], want[..., degrees == degree], 1e-11 if dtype == F64 else 4e-6
        )


@pytest.mark.parametrize("path", PATHS)
def test_all_pairs_are_those_of_gaussian_pairs(path, device):
    """Blocks of targets: one and a bit; a target whose list is empty, and lists of different lengths."""
    n = 66
    given = problem(1, n, n, listed=0.0)
    positions, _, moments, _ = given
    i, j = (~torch.eye(n, dtype=torch.bool)).nonzero().T
    widths = torch.tensor([[1.1, math.inf]], dtype=F64)
    want = gaussian_pairs(positions, moments, widths[:, 0].contiguous(), torch.tensor([0, n]), 2)
    keep = i != 3
    want[3] = 0.0
    given = moved(
        (positions, positions, moments, sort_pairs(i[keep], j[keep], n, n)), place(path, device), F64
    )
    assert_close(listed_pairs(*given[:3], widths, given[3], 2).cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_a_target_on_a_source(path, dtype, device):
    """``sqrt(2 / pi) (1/S - 1/T)``, and a third of the difference of the cubes for dipoles."""
    point = torch.zeros(1, 3, dtype=dtype, device=place(path, device))
    moments = torch.tensor([[[[2.0, 0.5, 0.0, -1.0]]]], dtype=dtype, device=point.device)
    index = torch.zeros(1, dtype=torch.int64, device=point.device)
    got = listed_pairs(point, point, moments, WIDTHS[:1], sort_pairs(index, index, 1, 1), 1)
    s, t = WIDTHS[0].tolist()
    charge, dipole = 1 / s - 1 / t, (s**-3 - t**-3) / 3
    want = math.sqrt(2 / math.pi) * torch.tensor([2 * charge, 0.5 * dipole, 0.0, -dipole], dtype=F64)
    assert_close(got.flatten().cpu(), want)


@pytest.mark.parametrize("path", PATHS)
def test_second_derivatives_on_both_paths(path, device):
    given = problem(1, n_widths=2)

    def both(targets, sources, moments, pairs):
        leaves = [x.clone().requires_grad_() for x in (targets, sources, moments)]
        return derivatives(listed_pairs(*leaves, WIDTHS, pairs, 1) ** 2, leaves, 2)

    for a, b in zip(both(*moved(given, place(path, device), F64)), both(*given), strict=True):
        assert_close(a.cpu(), b)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("source_rank", [0, 1])
def test_gradcheck(source_rank, rank):
    *points, pairs = problem(source_rank, 2, 3, n_widths=2)
    points[0][0] = points[1][1]  # a target on a source
    leaves = [x.requires_grad_() for x in points]

    def value(*leaves):
        return listed_pairs(*leaves, WIDTHS, pairs, rank)

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


@pytest.mark.parametrize("pairs_per_chunk", [1, 3, 7])
def test_chunks_and_what_is_kept(pairs_per_chunk, monkeypatch):
    """The same sums in any chunks, the second time, and after a change in place."""
    targets, sources, moments, pairs = problem(1, n_widths=2)
    cpu = submodule("listed_pairs.cpu")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_KEPT_BYTES", -1)
            want = listed_pairs(targets, sources, moments, WIDTHS, pairs, 2)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_CHUNK_PAIRS", pairs_per_chunk)
            for rank in (2, 0, 1, 2):
                got = listed_pairs(targets, sources, moments, WIDTHS, pairs, rank)
                assert_close(got, want[..., : monomial_count(rank)])
        targets.mul_(1.1)
        moments.neg_()
    recent.clear()


def test_transforms(generator):
    """Mapped over moments and points, forward mode, and the operator's own checks."""
    targets, sources, moments, pairs = problem(1, 2, 3)
    batch = torch.randn(3, *moments.shape, generator=generator, dtype=F64)

    def of_moments(m):
        return listed_pairs(targets, sources, m, WIDTHS[:1], pairs, 1)

    assert_close(torch.vmap(of_moments)(batch), torch.stack([of_moments(m) for m in batch]))

    def of_points(t):
        return listed_pairs(t, sources, moments, WIDTHS[:1], pairs, 1)

    shifted = torch.stack((targets, targets + 0.2))
    assert_close(torch.vmap(of_points)(shifted), torch.stack([of_points(t) for t in shifted]))
    assert_close(torch.func.jacfwd(of_points)(targets), torch.func.jacrev(of_points)(targets))
    arguments = (targets.requires_grad_(), sources, moments, WIDTHS[:1], *pairs, 1)
    torch.library.opcheck(torch.ops.scfmlip.listed_pairs.default, arguments)


@pytest.mark.parametrize("path", PATHS)
def test_nobody_to_interact_with(path, device):
    for n_targets, n_sources in ((0, 2), (2, 0), (0, 0), (3, 2)):
        given = moved(problem(1, n_targets, n_sources, listed=0.0), place(path, device), F64)
        got = listed_pairs(*given[:3], WIDTHS[:1], given[3], 1)
        assert got.shape == (n_targets, 1, 1, 4)
        assert not got.any()


def test_refuses():
    targets, sources, moments, pairs = problem(1)
    with pytest.raises(TypeError, match=r"sources is torch\.float32, targets is torch\.float64"):
        listed_pairs(targets, sources.float(), moments, WIDTHS[:1], pairs, 0)
    with pytest.raises(ValueError, match=r"moments must be \[6, n_channels, 2, n_monomials\]"):
        listed_pairs(targets, sources, moments, WIDTHS, pairs, 0)
    with pytest.raises(ValueError, match=r"target_ptr must be \[4\]"):
        listed_pairs(targets[:3], sources, moments, WIDTHS[:1], pairs, 0)
    with pytest.raises(ValueError, match=r"source_ptr must be \[8\]"):
        listed_pairs(
            targets,
            torch.cat((sources, sources[:1])),
            torch.cat((moments, moments[:1])),
            WIDTHS[:1],
            pairs,
            0,
        )
    with pytest.raises(ValueError, match="widths must be above 0"):
        listed_pairs(targets, sources, moments, -WIDTHS[:1], pairs, 0)
    tiny, single = torch.tensor([[1e-8, 1.0]], dtype=F64), [x.float() for x in (targets, sources, moments)]
    with pytest.raises(ValueError, match="float32 cannot hold the derivatives of Gaussians 1e-08 wide"):
        listed_pairs(*single, tiny, pairs, 1)
    index = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="target names targets 0 to 4, there are 4"):
        sort_pairs(index, index, 4, 6)
    with pytest.raises(ValueError, match=r"must be \[n_pairs\]"):
        sort_pairs(index, index[:1], 4, 6)
