"""Vectors along strained edges: both paths against strained positions, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives
from scfmlip_kernels import edge_vectors, sort_edges
from scfmlip_kernels.edge_vectors.reference import edge_vectors_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def problem(generator, sizes=(4, 0, 3), n_edges=50, device="cpu", dtype=F64):
    """Edges within systems, one atom without any."""
    n, system = sum(sizes), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    positions = torch.randn(n, 3, generator=generator, dtype=F64)
    shifts = torch.randn(n_edges, 3, generator=generator, dtype=F64)
    sender = torch.randint(0, n, (n_edges,), generator=generator)
    first, last = torch.tensor([0, *sizes]).cumsum(0)[system[sender]], torch.tensor(sizes)[system[sender]]
    receiver = first + (torch.rand(n_edges, generator=generator) * last).long()
    strain = 0.1 * torch.randn(len(sizes), 3, 3, generator=generator, dtype=F64)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    floats = [t.to(device, dtype) for t in (positions, shifts, strain)]
    return *floats, sort_edges(sender.to(device), receiver.to(device), n), system.to(device), ptr.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strained", [False, True])
@pytest.mark.parametrize(("sizes", "n_edges"), [((4, 0, 3), 50), ((70,), 300), ((3,), 0)])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, sizes, n_edges, strained, dtype, generator, device):
    given = problem(generator, sizes, n_edges, "cpu" if path == "cpu" else device, dtype)
    positions, shifts, strain, edges, system, ptr = given
    leaves = (positions.requires_grad_(), strain.requires_grad_())[: 1 + strained]
    exact = tuple(t.detach().to(F64).requires_grad_() for t in leaves)
    for order in (1, 2):  # the kernels of the derivative, and formulas that are differentiated again
        more = (strain, system, ptr) if strained else ()
        value = edge_vectors(positions, shifts, edges, *more)
        assert value.dtype == dtype
        want = edge_vectors_reference(
            exact[0], shifts.double(), edges.sender, edges.receiver, exact[1] if strained else None, system
        )
        got = [value, *derivatives(value, leaves, order)]
        for a, b in zip(got, [want, *derivatives(want, exact, order)], strict=True):
            # sums over edges of one atom, rounded one after another
            assert_close(a, b, 1e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize("path", PATHS)
def test_an_edge_of_length_zero_passes_nothing_on(path, device):
    place = "cpu" if path == "cpu" else device
    positions = torch.zeros(2, 3, dtype=F64, device=place, requires_grad=True)
    index = torch.tensor([0, 1], device=place)
    value = edge_vectors(positions, torch.zeros(2, 3, dtype=F64, device=place), sort_edges(index, index, 2))
    (slope,) = torch.autograd.grad(value[:, 3].sum(), positions)
    assert slope.tolist() == [[0.0] * 3] * 2


def test_gradcheck(generator):
    positions, shifts, strain, edges, system, ptr = problem(generator, n_edges=9)

    def run(p, s):
        return edge_vectors(p, shifts, edges, s, system, ptr)

    leaves = (positions.requires_grad_(), strain.requires_grad_())
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    positions, shifts, strain, edges, system, ptr = problem(generator, n_edges=9)
    orders = (edges.by_receiver, edges.receiver_ptr, edges.by_sender, edges.sender_ptr)
    leaves = (positions.requires_grad_(), strain.requires_grad_())
    arguments = (*leaves, shifts, system, ptr, edges.sender, edges.receiver, *orders)
    torch.library.opcheck(torch.ops.scfmlip.edge_vectors.default, arguments)


def test_refuses(generator):
    positions, shifts, strain, edges, *_ = problem(generator)
    with pytest.raises(ValueError, match="pass system and system_ptr"):
        edge_vectors(positions, shifts, edges, strain)
    with pytest.raises(ValueError, match=r"shifts must be \[50, 3\]"):
        edge_vectors(positions, shifts[1:], edges)
    with pytest.raises(NotImplementedError, match="detach them"):
        edge_vectors(positions, shifts.requires_grad_(), edges).sum().backward()
