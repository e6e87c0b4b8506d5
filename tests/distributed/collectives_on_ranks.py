"""What every rank of test_collectives.py does; asserts there end all of them."""

import os
import sys
import zlib

import pytest
import torch

import scfmlip
from scfmlip.distributed import (
    Communicator,
    SingleProcess,
    all_reduce,
    build_halo,
    equal_parts,
    share_gradient,
    shared_segments,
    sum_gradient,
    sum_of_equals,
)
from scfmlip.electrostatics.joint import potential_and_energy


def communicator(kind) -> Communicator:
    from scfmlip.distributed.mpi import MpiCommunicator

    ranks = MpiCommunicator()
    if kind == "mpi":
        return ranks
    from mpi4py import MPI

    from scfmlip.distributed.process_group import ProcessGroupCommunicator

    port = MPI.COMM_WORLD.bcast(29500 + os.getpid() % 2000, 0)
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", where, rank=ranks.rank, world_size=ranks.size)
    return ProcessGroupCommunicator()


class Recorded:
    """The names of a communicator's calls, in order."""

    def __init__(self, ranks):
        self.calls = []
        for name in ("all_reduce", "exchange"):
            setattr(ranks, name, self.watch(name, getattr(ranks, name)))

    def watch(self, name, method):
        def call(values, *arguments, **options):
            width = tuple(values.shape[1:]) if name == "exchange" else tuple(values.shape)
            self.calls.append(f"{name}{width}")
            return method(values, *arguments, **options)

        return call


def check_communicator(ranks):
    n, me = ranks.size, ranks.rank
    for dtype in (torch.float32, torch.float64, torch.int64):
        values = torch.arange(4).to(dtype) + me
        kept = values.clone()
        assert torch.equal(ranks.all_reduce(values), n * torch.arange(4).to(dtype) + n * (n - 1) // 2)
        assert torch.equal(ranks.all_reduce(values, "max"), torch.arange(4).to(dtype) + n - 1)
        assert torch.equal(values, kept)
    assert ranks.all_reduce(torch.zeros(0)).shape == (0,)
    assert ranks.gather(torch.tensor([me, 7])).tolist() == [[r, 7] for r in range(n)]
    # rank r sends r + to rows to each rank
    send = [me + to for to in range(n)]
    receive = [me + source for source in range(n)]
    rows = torch.tensor([[me, to] for to in range(n) for _ in range(send[to])]).view(-1, 2)
    got = ranks.exchange(rows, send, receive)
    assert got.tolist() == [[source, me] for source in range(n) for _ in range(receive[source])]


def owners(n_atoms, ranks, empty):
    """Which rank owns each atom; with ``empty`` the last one nothing."""
    used = ranks.size - 1 if empty and ranks.size > 1 else ranks.size
    return (torch.arange(n_atoms) * 7 % 5) % used


def energy(q, x, ranks, halo, ghosts_of, pairs, scale):
    """Something with sums over all atoms, neighbours of two layers, and a copy of a number on each rank."""
    factors = torch.stack([(q * torch.cos(k * x)).sum() for k in range(1, 4)])
    sums = all_reduce(factors, ranks)
    h = torch.tanh(q + x * sums[0])
    receiver, sender = pairs
    for _ in range(2):
        everywhere = halo.extend(h[:, None])[:, 0]
        h = h + torch.zeros_like(h).index_add(0, receiver, torch.sin(everywhere[ghosts_of[sender]]))
    total = all_reduce((h**2 * q).sum()[None], ranks)[0]
    return (total * scale * sums[1] + (sums**2).sum()) / ranks.size


def check_gradients(ranks, empty):
    """First and second derivatives are those of one process that has all atoms."""
    torch.manual_seed(0)
    n_atoms = 11
    q, x = torch.randn(2, n_atoms, dtype=torch.float64).unbind(0)
    neighbours = torch.tensor([[i, (i + d) % n_atoms] for i in range(n_atoms) for d in (1, 2, 5)]).T
    where = owners(n_atoms, ranks, empty)
    mine = torch.nonzero(where == ranks.rank).flatten()

    def derivatives(ranks, mine, halo, row_of, pairs):
        local_q, local_x = q[mine].clone().requires_grad_(), x[mine].clone().requires_grad_()
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        value = energy(local_q, local_x, ranks, halo, row_of, pairs, scale)
        grads = torch.autograd.grad(value, (local_q, local_x, scale), create_graph=True)
        square = (grads[0] ** 2).sum() + (grads[0] * grads[1]).sum()
        second = torch.autograd.grad(square, (local_q, local_x))
        return value * ranks.size, *grads, *second

    keep = (neighbours[0][:, None] == mine).any(1)
    pairs = neighbours[:, keep]
    ghosts = pairs[1].unique()
    ghosts = ghosts[~(ghosts[:, None] == mine).any(1)]
    recorded = Recorded(ranks)
    halo, ghost = build_halo(ranks, mine + 100, ghosts + 100)
    row_of = torch.full((n_atoms,), -1)
    row_of[mine] = torch.arange(len(mine))
    row_of[ghosts] = len(mine) + ghost
    assert halo.extend(x[mine])[row_of[ghosts]].equal(x[ghosts])
    pairs = torch.stack((row_of[pairs[0]], pairs[1]))
    value, dq, dx, d_scale, dqq, dxx = derivatives(ranks, mine, halo, row_of, pairs)

    alone = SingleProcess()
    whole = torch.arange(n_atoms)
    all_halo, _ = build_halo(alone, whole, whole[:0])
    want = derivatives(alone, whole, all_halo, whole, neighbours)
    torch.testing.assert_close(value, want[0])
    for got, reference in zip((dq, dx, dqq, dxx), (want[1], want[2], want[4], want[5]), strict=True):
        torch.testing.assert_close(got, reference[mine], rtol=1e-12, atol=1e-12)
    # the parts of a replicated number's gradient add up
    torch.testing.assert_close(ranks.all_reduce(d_scale[None])[0], want[3])
    # and every rank has asked for the same, backward included, or they would not be here
    count = torch.tensor([len(recorded.calls), zlib.crc32("".join(recorded.calls).encode())])
    assert torch.equal(ranks.all_reduce(count, "max"), count)


def check_whole_gradients(ranks):
    """A function of its own adjoint takes whole gradients and gives whole ones."""
    copy = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    local = torch.full((2,), 1.0 + ranks.rank, dtype=torch.float64, requires_grad=True)
    passed = share_gradient(copy, ranks)
    out = sum_gradient(passed**3, ranks)
    (out * local.sum()).sum().backward()
    total = sum(2 * (1.0 + r) for r in range(ranks.size))
    torch.testing.assert_close(ranks.all_reduce(copy.grad), copy.detach() ** 2 * 3 * total)


def check_equals(ranks):
    """What all ranks make of a sum alike has the derivatives of any other, whatever parts come to it."""
    torch.manual_seed(6 + ranks.rank)
    x = torch.randn(4 - ranks.rank % 2, dtype=torch.float64, requires_grad=True)
    c = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)

    def derivatives(total, leave):
        first, second = total(torch.stack((x.sum(), (x**2).sum())), ranks)
        value = leave(c * first**3 + torch.cos(second) * first, ranks)
        before = ranks.traffic.copy()
        dx, dc = torch.autograd.grad((1.0 + ranks.rank) * value, (x, c), create_graph=True)
        sent = ranks.traffic.since(before)
        loss = (2.0 + ranks.rank) * (torch.sin(dx) * x).sum() + (all_reduce(dc, ranks) ** 2).sum()
        dxx, dcc = torch.autograd.grad(loss, (x, c))
        found = torch.cat((value, all_reduce(dc, ranks), dx, dxx, all_reduce(dcc, ranks)))
        return found, (sent.reductions, sent.reduced_bytes)

    got, sent = derivatives(sum_of_equals, equal_parts)
    want, plainly = derivatives(all_reduce, lambda value, _: value)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    if ranks.size > 1:  # one number for the value instead of one for each sum
        assert (sent, plainly) == ((1, 8), (1, 16))


def check_coulomb(ranks, method, pbc, **options):
    """Energy, potential, features and derivatives of atoms that ranks share, the last of which has none."""
    torch.manual_seed(1)
    cell = torch.diag(torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)) + 0.3
    places, rows = torch.rand(13, 3, dtype=torch.float64) @ cell, torch.randn(13, 4, dtype=torch.float64)
    places[:, 2] = 3 + 0.4 * places[:, 2]
    options = {"l_max": 1, "sigma": 1.2, "tolerance": 1e-8, **options}
    coulomb = scfmlip.Coulomb(method=method, **options)
    rows = torch.cat([rows] * coulomb.source.n_widths, 1)
    mine = torch.nonzero(owners(13, ranks, True) == ranks.rank).flatten()

    def derivatives(which, segments, share):
        leaves = [t.clone().requires_grad_() for t in (places[which], rows[which], cell)]
        geometry = coulomb.prepare(leaves[0], leaves[2], torch.tensor(pbc), segments)
        assert (geometry.smooth_width is not None) == bool(coulomb.smooth)
        energy, potential = geometry.energy(leaves[1]), geometry.potential(leaves[1])
        features = geometry.features(leaves[1], 1.7)
        loss = share * energy.sum() + (torch.sin(potential) * rows[which]).sum() + torch.cos(features).sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad((grads[0] ** 2).sum() + (grads[1] ** 3).sum(), leaves[:2])
        return energy, potential, features, *grads, *second

    got = derivatives(mine, shared_segments(len(mine), ranks, mine.device), 1 / ranks.size)
    want = derivatives(torch.arange(13), None, 1.0)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if i == 5:
            a = ranks.all_reduce(a)
        b = b if i in (0, 5) else b[mine]
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * scale)


def check_traffic(ranks):
    """Narrow Gaussians send their rows once for each evaluation, and what a derivative leaves once back."""
    torch.manual_seed(4)
    cell, mine = 9.0 * torch.eye(3).double(), torch.nonzero(owners(13, ranks, False) == ranks.rank).flatten()
    places, rows = (torch.rand(13, n, dtype=torch.float64)[mine].requires_grad_() for n in (3, 4))
    segments, coulomb = shared_segments(len(mine), ranks, mine.device), scfmlip.Coulomb(sigma=0.6, smooth=1.1)
    geometry = coulomb.prepare(9.0 * places, cell, None, segments)

    def sent(call):
        before = ranks.traffic.copy()
        out, since = call(), ranks.traffic.since(before)
        assert since.message_bytes > 0
        return out, (since.exchanges, since.reductions)

    if ranks.size > 1:
        with pytest.raises(ValueError, match="values at points are not known"):
            geometry.at(places.detach(), rows.detach())
    with torch.no_grad():
        # structure factors, with the charge that the average of neighbours follows from
        assert sent(lambda: geometry.potential(rows))[1] == (1, 1)
        states, parts = rows[:, None], torch.ones(3).double()
        assert sent(lambda: potential_and_energy(geometry, states, parts))[1] == (1, 1)
    energy, counts = sent(lambda: geometry.energy(rows).sum() / ranks.size)
    assert counts == (1, 1)
    assert sent(lambda: torch.autograd.grad(energy, rows, retain_graph=True))[1] == (1, 1)
    # places are sent once for a geometry
    assert sent(lambda: torch.autograd.grad(energy, (rows, places)))[1] == (2, 1)


def check_widths(ranks, pbc, **options):
    """Charges with widths of their own, whose neighbours other ranks own; the last rank has none."""
    torch.manual_seed(2)
    cell = torch.diag(torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)) + 0.3
    places, chi, hardness = torch.rand(13, 3).double() @ cell, torch.randn(13).double(), torch.rand(13) + 1.0
    places[:, 2] = 3 + 0.4 * places[:, 2]
    hardness, widths = hardness.double(), torch.linspace(0.4, 0.9, 13, dtype=torch.float64)
    coulomb = scfmlip.Coulomb(l_max=0, sigma=1.1, tolerance=1e-10)
    mine = torch.nonzero(owners(13, ranks, True) == ranks.rank).flatten()

    def found(which, segments, share):
        leaves = [t[which].clone().requires_grad_() for t in (places, chi, hardness, widths)]
        geometry = coulomb.prepare(leaves[0], cell, torch.tensor(pbc), segments)
        given = {**options, "widths": leaves[3]} if "interaction" not in options else options
        solution = scfmlip.charge_equilibration(
            geometry, leaves[1], leaves[2], 0.3, method="cg", tolerance=1e-12, **given
        )
        loss = share * solution.energy.sum() + (solution.charges**3).sum()
        wanted = leaves if "widths" in given else leaves[:3]
        return solution.energy, solution.charges, *torch.autograd.grad(loss, wanted)

    got = found(mine, shared_segments(len(mine), ranks, mine.device), 1 / ranks.size)
    want = found(torch.arange(13), None, 1.0)
    torch.testing.assert_close(got[0], want[0], rtol=1e-10, atol=0)
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b[mine], rtol=1e-9, atol=1e-9)


def check_memory(ranks):
    """
    Starts from earlier solves, of which each rank keeps its rows.

    All of them forget where the rows of one have changed.
    """
    torch.manual_seed(3)
    cell, base = 7.5 * torch.eye(3).double(), 7.5 * torch.rand(13, 3).double()
    modes, weights = 0.1 * torch.randn(2, 13, 3).double(), torch.randn(3).double()
    coulomb = scfmlip.Coulomb(l_max=0, sigma=1.1)
    counts, memory, plain = [], scfmlip.scf.SolverMemory(), scfmlip.scf.SolverMemory(fit=None)
    for step in range(12):
        angles = torch.tensor([0.2, 0.35]).double() * step
        places = base + torch.einsum("m,mnc->nc", angles.sin(), modes)
        chi, hardness = torch.sin(places @ weights), torch.ones(13).double()

        def solve(which, segments, **options):
            geometry = coulomb.prepare(places[which], cell, None, segments)  # noqa: B023
            return scfmlip.charge_equilibration(
                geometry,
                chi[which],  # noqa: B023
                hardness[which],  # noqa: B023
                0.3,
                method="cg",
                **{"tolerance": 1e-5, **options},
            )

        where = owners(13, ranks, True)
        if step == 10 and ranks.size > 1:
            where[where == 0] = ranks.size - 1  # nobody said so
        mine = torch.nonzero(where == ranks.rank).flatten()
        segments = shared_segments(len(mine), ranks, mine.device)
        ours, theirs = (solve(mine, segments, memory=known) for known in (memory, plain))
        memory, plain = ours.memory, theirs.memory
        want = solve(torch.arange(13), None, tolerance=1e-10)
        torch.testing.assert_close(ours.charges, want.charges[mine], rtol=0, atol=1e-5)
        counts.append((int(ours.iterations), int(theirs.iterations)))
        kept = torch.tensor([len(memory.fit.sources)])
        assert torch.equal(ranks.all_reduce(kept, "max"), -ranks.all_reduce(-kept, "max"))
    mean = torch.tensor(counts[5:10]).double().mean(0)
    assert mean[0] <= mean[1] - 2, counts
    assert int(kept) == (1 if ranks.size > 1 else 8), kept


def check_ids(ranks):
    """Ids that are nobody's or belong to two atoms are refused on every rank."""
    for owned, wanted in (([5], []), ([ranks.rank], [999])):
        if ranks.size == 1 and not wanted:
            continue
        with pytest.raises(ValueError, match="atom_modify id yes"):
            build_halo(ranks, torch.tensor(owned), torch.tensor(wanted, dtype=torch.int64))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = communicator(sys.argv[1])
    try:
        check_communicator(found)
        check_ids(found)
        check_whole_gradients(found)
        check_equals(found)
        if found.size > 1:
            check_traffic(found)
        check_gradients(found, empty=False)
        check_gradients(found, empty=True)
        check_coulomb(found, "mesh", [True, True, False], sigma=(0.5, 1.6), smooth=1.1, feature_widths=(1.7,))
        check_widths(found, [True, True, True], interaction="split")
        check_memory(found)
        for method in ("direct", "mesh"):
            for periodic in ([True, True, True], [True, True, False]):
                check_coulomb(found, method, periodic)
                if "all" in sys.argv:
                    check_widths(found, periodic)
                    check_widths(found, periodic, interaction="split")
                    for sigma in (0.6, (0.5, 1.6)):
                        check_coulomb(found, method, periodic, sigma=sigma, smooth=1.1, feature_widths=(1.7,))
            if "all" in sys.argv:
                check_coulomb(found, method, [False, False, False], tolerance=1e-10)
                check_widths(found, [False, False, False])
        print(f"rank {found.rank} of {found.size} is content")
        if sys.argv[1] != "mpi":
            torch.distributed.destroy_process_group()
    except BaseException:
        import traceback

        traceback.print_exc()
        found.abort()
