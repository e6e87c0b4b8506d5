"""Starts from earlier solutions whose sources combine to the new one: near where they can be, else left."""

from dataclasses import replace

import pytest
import torch
from tolerances import assert_close

import scfmlip
from scf.test_conjugate_memory import solve
from scf.test_memory import INDEX, SIZES, START, N, affine
from scfmlip.scf import SolverMemory, StateExtrapolator
from scfmlip.scf.solvers.source_fit import SourceFit
from scfmlip.segments import Segments

F64 = torch.float64
OFF = {"fit": None}


def vibrating(generator, steps, n_systems=1, dim=1):
    """Places, electronegativities (which follow the places) and hardness of atoms with fast vibrations."""
    axis = (torch.arange(3, dtype=F64) + 0.5) * 6.2 / 3
    n = 27 * n_systems
    places = torch.cartesian_prod(axis, axis, axis).repeat(n_systems, 1)
    places = places + 0.5 * torch.rand(n, 3, generator=generator, dtype=F64)
    weights = torch.randn(3, dim, generator=generator, dtype=F64)
    each = torch.randn(n, dim, generator=generator, dtype=F64)
    hardness = 1.0 + 0.5 * torch.rand(n, dim, generator=generator, dtype=F64)
    modes = 0.03 * torch.randn(3, n, 3, generator=generator, dtype=F64)
    for step in range(steps):
        angles = step * torch.tensor([0.15, 0.3, 0.4], dtype=F64)
        now = places + torch.einsum("m,mnc->nc", angles.sin(), modes)
        yield now, each + torch.sin(now @ weights), hardness


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("n_systems", [1, 2])
@pytest.mark.parametrize("target", ["charge", "potential", "fragments"])
def test_nearer_than_a_polynomial_and_to_the_same_charges(dim, n_systems, target, generator):
    options = {}
    if target == "potential":
        options = {"total_charge": None, "chemical_potential": 0.2}
    if target == "fragments":
        options = {"total_charge": 0.0, "fragments": torch.arange(27 * n_systems) // 9}
    last, memories, counts = StateExtrapolator(3), [SolverMemory(), SolverMemory(**OFF)], []
    for system in vibrating(generator, 24, n_systems, dim):
        found = [
            solve(system, n_systems, memory=memory, initial=last.guess(), **options) for memory in memories
        ]
        assert_close(found[0].state, found[1].state, 1e-6)
        memories = [one.memory for one in found]
        last.add(found[1].state)
        counts.append([float(one.iterations.max()) for one in found])
    fitted, plain = torch.tensor(counts)[10:].mean(0)
    assert fitted < plain - 0.7, counts


def test_charges_that_change_are_part_of_the_source(generator):
    memory, counts = SolverMemory(), []
    for step, system in enumerate(vibrating(generator, 16)):
        charge = 0.3 * torch.sin(torch.tensor([0.4 * step], dtype=F64))
        solution = solve(system, total_charge=charge, memory=memory)
        assert abs(float(solution.state.sum() - charge)) < 1e-10
        memory = solution.memory
        counts.append(int(solution.iterations))
    assert max(counts[10:]) <= 0.5 * counts[0], counts


def test_a_jump_and_a_source_that_tells_nothing_leave_the_given_start(generator):
    one, fit = Segments.of(torch.zeros(27, dtype=torch.int64), 1), SourceFit()
    draw = {"generator": generator, "dtype": F64}
    slow = [torch.randn(27, 2, **draw) for _ in range(3)]
    given = torch.randn(27, 1, **draw)
    for step in range(6):
        source = slow[0] + 0.1 * step * slow[1] + 0.01 * step**2 * slow[2]
        start = fit.start(source, given, None, one)
        assert (start.combined is None) == (step < 4)
        fit = fit.after(start, source[:, :1])
    jump = fit.start(torch.randn(27, 2, **draw), given, None, one)
    assert torch.equal(jump.rows, given)
    # the same source although the solution has moved: the given start was nearer
    for step in range(2):
        start = fit.start(source, given, None, one)
        assert torch.equal(start.rows, given) == (step == 1)
        fit = fit.after(start, given + 0.01)


def test_systems_of_a_batch_choose_for_themselves(generator):
    two, fit = Segments.of(torch.tensor([0] * 9 + [1] * 11), 2), SourceFit()
    draw = {"generator": generator, "dtype": F64}
    base, change, given = (scale * torch.randn(20, 3, **draw) for scale in (1.0, 0.1, 1.0))
    levels = torch.randn(2, 1, **draw)
    for step in range(5):
        start = fit.start(base + step * change, given, levels, two)
        fit = fit.after(start, 2 * (base + step * change), levels + step)
    source = base + 5 * change
    source[9:] = torch.randn(11, 3, **draw)
    start = fit.start(source, given, levels, two)
    assert_close(start.rows[:9], 2 * source[:9], 1e-6)
    assert torch.equal(start.rows[9:], given[9:])
    assert_close(start.levels, levels + torch.tensor([[5.0], [0.0]], dtype=F64), 1e-6)


def maps(generator, steps):
    """Affine maps whose sources vibrate."""
    draw = {"generator": generator, "dtype": F64}
    blocks = (INDEX[:, None] == INDEX[None]).double()
    matrix = -torch.randn(N, N, **draw) * blocks / max(SIZES) ** 0.5
    modes = torch.randn(5, N, 1, **draw)
    for step in range(steps):
        angles = step * torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=F64) + 1.0
        yield matrix, torch.einsum("m,mnc->nc", angles.sin(), modes)


@pytest.mark.parametrize("constraint", [{}, {"total_charge": torch.tensor([0.5, -1.0], dtype=F64)}])
def test_fixed_points_start_from_it(constraint, generator):
    memories, counts = [SolverMemory(), SolverMemory(**OFF)], []
    for matrix, source in maps(generator, 12):
        found = [
            scfmlip.fixed_point(
                affine, START, (matrix, source), batch_idx=INDEX, memory=memory, source=source, **constraint
            )
            for memory in memories
        ]
        assert_close(found[0].state, found[1].state, 1e-5)
        memories = [one.memory for one in found]
        counts.append([one.evaluations for one in found])
    fitted, plain = torch.tensor(counts).double()[8:].mean(0)
    assert fitted < plain, counts


def test_a_given_level_is_part_of_the_source(generator):
    memory, counts = SolverMemory(), []
    for step, (matrix, source) in enumerate(maps(generator, 12)):
        level = torch.tensor([0.3 * step**2 * 0.1, -0.1 * step], dtype=F64)
        solution = scfmlip.fixed_point(
            affine,
            START,
            (matrix, source),
            batch_idx=INDEX,
            chemical_potential=level,
            memory=memory,
            source=source,
        )
        memory = solution.memory
        counts.append(int(solution.iterations.max()))
    assert max(counts[8:]) < counts[0], counts


def test_restarts_and_rows_that_change_places(generator):
    memory = SolverMemory()
    systems = list(vibrating(generator, 7))
    for system in systems[:6]:
        memory = solve(system, memory=memory).memory
    again = SolverMemory.from_state(memory.state_dict())
    ours, theirs = (solve(systems[6], memory=one) for one in (memory, again))
    assert torch.equal(ours.state, theirs.state)
    order = torch.randperm(27, generator=generator)
    moved = memory.moved(27, lambda rows: rows[order])
    assert moved.fit is not None
    shuffled = tuple(part[order] for part in systems[6])
    there = solve(shuffled, memory=moved)
    assert_close(there.state, ours.state[order], 1e-6)
    start = moved.fit.start(
        torch.cat((shuffled[1], torch.zeros(27, 1, dtype=F64)), 1),
        torch.zeros(27, 1, dtype=F64),
        None,
        Segments.of(torch.zeros(27, dtype=torch.int64), 1),
    )
    assert start.combined is not None
    assert_close(start.combined, ours.state[order], 1e-2)


def test_a_preconditioner_that_misleads_is_left_out(generator):
    systems = list(vibrating(generator, 4))
    memory = SolverMemory()
    for system in systems[:3]:
        memory = solve(system, memory=memory).memory
    scales = torch.logspace(-5, 5, 27, dtype=F64)
    index, values, row, column, entries, ptr = memory.factor
    poison = [index, values * scales[:, None], row, column, entries * scales[row], ptr]
    poisoned = SolverMemory.from_state(memory.state_dict() | {"factor": poison, "spaces": []})
    options = {"tolerance": 1e-9, "max_iterations": 30}
    wanted = solve(systems[3], **options)
    misled = replace(poisoned, symmetric=False)  # so that nobody suspects it
    with pytest.raises(scfmlip.ConvergenceError):
        solve(systems[3], memory=misled, **options)
    found = solve(systems[3], memory=poisoned, **options)
    assert_close(found.state, wanted.state, 1e-8)
    assert float(found.memory.factor[1].abs().max()) < 10 * float(values.abs().max())


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (torch.zeros(N - 1, 1, dtype=F64), ValueError, "source must have shape"),
        (torch.zeros(N, 1, dtype=torch.int64), TypeError, "floating-point"),
        ([1.0] * N, TypeError, "floating-point"),
    ],
)
def test_bad_sources(source, error, words, generator):
    arguments = next(maps(generator, 1))
    with pytest.raises(error, match=words):
        scfmlip.fixed_point(affine, START, arguments, batch_idx=INDEX, source=source)
