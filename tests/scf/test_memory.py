"""What one solve hands on to the next: fewer steps, the same results, renewed where it does not help."""

import pytest
import torch
from tolerances import assert_close

from scfmlip import fixed_point
from scfmlip.scf import SolverMemory
from scfmlip.scf.solvers.gmres import KrylovInverse
from scfmlip.segments import Segments

F64 = torch.float64
SIZES = (25, 35)
N = sum(SIZES)
INDEX = torch.arange(2).repeat_interleave(torch.tensor(SIZES))
BLOCKS = (INDEX[:, None] == INDEX[None]).double()
START = torch.zeros(N, 1, dtype=F64)


def trajectory(generator, steps, size=1e-4):
    """Maps with a few strong responses, as metals have, that change a little from step to step."""
    strong = torch.block_diag(
        *(torch.linalg.qr(torch.randn(n, 6, generator=generator, dtype=F64)).Q for n in SIZES)
    )
    strengths = torch.logspace(0, 1.5, 6, dtype=F64).repeat(2)
    matrix = -(strong * strengths) @ strong.T
    source = torch.randn(N, 1, generator=generator, dtype=F64)
    change = size * torch.randn(N, N, generator=generator, dtype=F64) * BLOCKS
    return [(matrix + step * change, source) for step in range(steps)]


def affine(state, *arguments):
    *potential, matrix, source = arguments
    out = matrix @ state + source
    return out - potential[0][INDEX][:, None] if potential else out


def curved(state, *arguments):
    return affine(state, *arguments) + 0.05 * torch.sin(state)


CONSTRAINT = {"total_charge": torch.tensor([0.5, -1.0], dtype=F64)}


@pytest.mark.parametrize("update", [affine, curved])
@pytest.mark.parametrize("constraint", [{}, CONSTRAINT], ids=["free", "charge"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_fewer_steps_to_the_same_result(update, constraint, dtype, generator):
    tolerance, memory, steps = 1e-6, SolverMemory(), 6
    solver = {} if update is affine else {"solver": "newton"}
    options = {"batch_idx": INDEX, "tolerance": tolerance, **constraint, **solver}
    options = {k: v.to(dtype) if k == "total_charge" else v for k, v in options.items()}
    evaluations, start = [], START.to(dtype)
    for matrix, source in trajectory(generator, steps):
        arguments = [t.to(dtype).requires_grad_() for t in (matrix, source)]
        fresh = fixed_point(update, start, arguments, **options)
        found = fixed_point(update, start, arguments, memory=memory, **options)
        assert fresh.memory is None
        assert found.memory is not None
        memory, start = found.memory, found.state.detach()
        assert dtype != F64 or found.affine == fresh.affine == (update is affine)
        assert found.status.tolist() == [0, 0]
        assert (found.residual <= (tolerance if dtype == F64 else 3e-6)).all()
        assert_close(found.state, fresh.state, 2e-5)
        grads = [torch.autograd.grad((s.state**2).sum(), arguments) for s in (found, fresh)]
        for a, b in zip(*grads, strict=True):
            assert_close(a, b, 2e-4)
        evaluations.append((found.evaluations, fresh.evaluations))
    assert evaluations[0][0] == evaluations[0][1]
    assert all(got < 0.8 * want for got, want in evaluations[1:]), evaluations


def test_the_first_solve_is_as_without():
    matrix, source = trajectory(torch.Generator().manual_seed(0), 1)[0]
    options = {"batch_idx": INDEX, "tolerance": 1e-8}
    plain = fixed_point(affine, START, (matrix, source), **options)
    asked = fixed_point(affine, START, (matrix, source), memory=SolverMemory(), **options)
    assert torch.equal(plain.state, asked.state)
    assert plain.evaluations == asked.evaluations


def test_what_does_not_help_is_made_anew(generator):
    """Another matrix altogether: right at once, and with its own memory after two solves."""
    (matrix, source), *_ = trajectory(generator, 1)
    options, memory = {"batch_idx": INDEX, "tolerance": 1e-10}, SolverMemory()
    for _ in range(3):
        memory = fixed_point(affine, START, (matrix, source), memory=memory, **options).memory
    assert len(memory.spaces) > 1
    other = 0.05 * torch.randn(N, N, generator=generator, dtype=F64) * BLOCKS
    counts = []
    for _ in range(4):
        found = fixed_point(affine, START, (other, source), memory=memory, **options)
        assert_close(found.state, torch.linalg.solve(torch.eye(N, dtype=F64) - other, source), 1e-8)
        memory = found.memory
        counts.append(found.evaluations)
    assert counts[-1] < counts[1]
    assert counts[-1] <= 6


@pytest.mark.parametrize("poison", [0.0, float("nan"), 1e12])
def test_a_memory_that_misleads_is_left_out(poison, generator):
    (matrix, source), *_ = trajectory(generator, 1)
    options = {"batch_idx": INDEX, "tolerance": 1e-8}
    memory = fixed_point(affine, START, (matrix, source), memory=SolverMemory(), **options).memory
    (basis, pinv, projector, cross), *_ = memory.spaces
    poisoned = (basis * poison, pinv * poison, projector, cross)
    wrong = SolverMemory((poisoned,), True, memory.fresh, memory.fewest)
    found = fixed_point(affine, START, (matrix, source), memory=wrong, **options)
    assert found.status.tolist() == [0, 0]
    assert_close(found.state, torch.linalg.solve(torch.eye(N, dtype=F64) - matrix, source), 1e-6)


def test_a_map_that_is_no_longer_affine(generator):
    (matrix, source), *_ = trajectory(generator, 1)
    options = {"batch_idx": INDEX, "tolerance": 1e-9}
    memory = fixed_point(affine, START, (matrix, source), memory=SolverMemory(), **options).memory
    assert memory.affine
    found = fixed_point(curved, START, (matrix, source), memory=memory, **options)
    assert_close(curved(found.state, matrix, source), found.state, 1e-7)


def test_other_sizes_and_anderson_start_afresh(generator):
    (matrix, source), *_ = trajectory(generator, 1)
    options = {"batch_idx": INDEX, "tolerance": 1e-8}
    memory = fixed_point(affine, START, (matrix, source), memory=SolverMemory(), **options).memory
    small = (0.1 * matrix[:9, :9], source[:9])
    found = fixed_point(affine, START[:9], small, memory=memory, tolerance=1e-8)
    assert found.memory.spaces[0][0].shape[1] == 9
    weak = (0.01 * matrix, source)
    plain = fixed_point(affine, START, weak, solver="anderson", **options)
    mixed = fixed_point(affine, START, weak, solver="anderson", memory=memory, **options)
    assert torch.equal(plain.state, mixed.state)


def test_a_restart_is_exact(generator):
    maps, options = trajectory(generator, 6), {"batch_idx": INDEX, "tolerance": 1e-7}
    memory = SolverMemory()
    for arguments in maps[:3]:
        memory = fixed_point(affine, START, arguments, memory=memory, **options).memory
    again = SolverMemory.from_state(memory.state_dict())
    assert SolverMemory.from_state(SolverMemory().state_dict()) == SolverMemory()
    for arguments in maps[3:]:
        one = fixed_point(affine, START, arguments, memory=memory, **options)
        other = fixed_point(affine, START, arguments, memory=again, **options)
        assert torch.equal(one.state, other.state)
        memory, again = one.memory, other.memory


@pytest.mark.parametrize("constraint", [{}, CONSTRAINT], ids=["free", "charge"])
def test_rows_that_change_places(constraint, generator):
    """The inverse of permuted equations is the permuted inverse; a potential keeps its place."""
    (matrix, source), (after, _) = trajectory(generator, 2)
    options = {"batch_idx": INDEX, "tolerance": 1e-8, **constraint}
    memory = fixed_point(affine, START, (matrix, source), memory=SolverMemory(), **options).memory
    same = fixed_point(affine, START, (after, source), memory=memory, **options)
    # within each system, so that the same constraint holds
    order = torch.cat([start + torch.randperm(n, generator=generator) for start, n in ((0, 25), (25, 35))])
    moved = memory.moved(N, lambda rows: rows[order])
    assert moved.size == memory.size == 1
    there = after[order][:, order], source[order]
    found = fixed_point(affine, START, there, memory=moved, **options)
    assert found.iterations.tolist() == same.iterations.tolist()
    assert found.evaluations == same.evaluations
    assert_close(found.state, same.state[order], 1e-9)
    fresh = fixed_point(affine, START, there, **options)
    assert found.evaluations < fresh.evaluations
    assert SolverMemory.from_state(moved.state_dict()).size == 1


def test_an_empty_memory_has_nothing_to_move():
    assert SolverMemory().moved(3, lambda rows: rows[:0]) == SolverMemory()


def test_a_product_of_inverses(generator):
    """Taken with one set of dot products it is the product of dense matrices, and so is its transpose."""
    batch, inverse, dense = Segments.of(INDEX, 2), None, torch.eye(N, dtype=F64)
    for sign, k in ((-1.0, 4), (1.0, 2), (1.0, 3)):
        parts = [torch.linalg.qr(torch.randn(n, k + 1, generator=generator, dtype=F64)).Q.T for n in SIZES]
        hessenberg = torch.randn(2, k + 1, k, generator=generator, dtype=F64)
        inverse = KrylovInverse.of_space(torch.cat(parts, 1), hessenberg, batch, 1e-14, inverse)
        blocks = []
        for basis, h in zip(parts, hessenberg, strict=True):
            pinv, eye = torch.linalg.pinv(h), torch.eye(basis.shape[1], dtype=F64)
            inside = basis[:-1].T @ pinv @ basis
            blocks.append(inside + sign * (eye - basis.T @ h @ pinv @ basis))
        dense = dense @ torch.block_diag(*blocks)
    r = torch.randn(N, generator=generator, dtype=F64)
    assert_close(inverse(r), dense @ r, 1e-10)
    assert_close(inverse.transposed(r), dense.T @ r, 1e-10)


def test_what_an_earlier_version_wrote_is_forgotten():
    """It had no overlaps between spaces; a solve without it is slower, not wrong."""
    scale = torch.tensor([[0.5], [0.2]], dtype=torch.float64)
    start = torch.zeros(2, 1, dtype=torch.float64)
    known = fixed_point(lambda s: 1 + scale * s, start, memory=SolverMemory()).memory
    state = known.state_dict()
    assert len(SolverMemory.from_state(state).spaces) == 1
    old = {**state, "spaces": [space[:3] for space in state["spaces"]]}
    assert SolverMemory.from_state(old) == SolverMemory()
