"""What charge solves hand on along a trajectory: fewer iterations, one preconditioner, the same charges."""

import pytest
import torch
from tolerances import assert_close

import scfmlip
from scfmlip.scf import SolverMemory
from scfmlip.scf.solvers.conjugate_inverse import ConjugateInverse
from scfmlip.segments import Segments

F64 = torch.float64
CELL = 6.2 * torch.eye(3, dtype=F64)


def trajectory(generator, steps, n_systems=1, dim=1):
    """Places, electronegativities and hardness of soft atoms that move by 0.01 angstrom a step."""
    axis = (torch.arange(3, dtype=F64) + 0.5) * 6.2 / 3
    n = 27 * n_systems
    places = torch.cartesian_prod(axis, axis, axis).repeat(n_systems, 1)
    places = places + 0.5 * torch.rand(n, 3, generator=generator, dtype=F64)
    chi = torch.randn(n, dim, generator=generator, dtype=F64)
    hardness = 0.3 + 0.2 * torch.rand(n, dim, generator=generator, dtype=F64)
    drift = 0.01 * torch.randn(n, 3, generator=generator, dtype=F64)
    for step in range(steps):
        yield places + step * drift, chi + 0.01 * step, hardness


def solve(system, n_systems=1, **options):
    positions, chi, hardness = system
    coulomb = scfmlip.Coulomb(l_max=1 if chi.shape[1] > 1 else 0, sigma=1.0, method="direct")
    index = torch.arange(n_systems).repeat_interleave(27)
    geometry = coulomb.prepare(positions, CELL.expand(n_systems, 3, 3), True, index)
    options = {"method": "cg", "tolerance": 1e-8, **options}
    return scfmlip.charge_equilibration(geometry, chi, hardness, **options)


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("n_systems", [1, 2])
@pytest.mark.parametrize("target", ["charge", "potential", "fragments"])
def test_fewer_iterations_to_the_same_charges(dim, n_systems, target, generator):
    options = {}
    if target == "potential":
        options = {"total_charge": None, "chemical_potential": 0.2}
    if target == "fragments":
        options = {"total_charge": 0.0, "fragments": torch.arange(27 * n_systems) // 9}
    memory, counts = SolverMemory(), []
    for system in trajectory(generator, 6, n_systems, dim):
        plain = solve(system, n_systems, **options)
        found = solve(system, n_systems, memory=memory, **options)
        assert plain.memory is None
        assert_close(found.state, plain.state, 1e-6)
        assert_close(found.energy, plain.energy, 1e-9)
        memory = found.memory
        counts.append((int(found.iterations.max()), int(plain.iterations.max())))
    assert counts[0][0] == counts[0][1]
    assert all(mine < 0.8 * theirs for mine, theirs in counts[2:]), counts


def test_the_inverse_is_symmetric_positive_and_exact_on_its_directions(generator):
    """Two spaces of two systems, the second found for another matrix."""
    sizes = torch.tensor([5, 7])
    batch = Segments.counted(sizes, torch.device("cpu"))
    spaces, matrices, earlier = [], [], []
    for _ in range(2):
        blocks = [torch.randn(n, n, generator=generator, dtype=F64) for n in sizes.tolist()]
        a = torch.block_diag(*(b @ b.T + torch.eye(len(b), dtype=F64) for b in blocks))
        # conjugate directions of both systems at once
        directions = torch.zeros(3, 12, dtype=F64)
        for begin, end in ((0, 5), (5, 12)):
            part = a[begin:end, begin:end]
            raw = torch.randn(end - begin, 3, generator=generator, dtype=F64)
            directions[:, begin:end] = (raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ part @ raw)).T).T
        images = directions @ a
        cross = torch.zeros(2, 3 * len(earlier), 3, dtype=F64)
        if earlier:
            pairs = torch.broadcast_tensors(torch.cat(earlier)[:, None], images[None])
            cross = batch.dot(*pairs).movedim(-1, 0)
        spaces.append((directions, images, cross))
        earlier.append(directions)
        matrices.append(a)
    apply = ConjugateInverse(spaces, batch).around(lambda v: 0.7 * v)
    inverse = torch.stack([apply(v) for v in torch.eye(12, dtype=F64)], 1)
    assert_close(inverse, inverse.T, 1e-12)
    assert bool((torch.linalg.eigvalsh(inverse) > 0).all())
    assert_close(inverse @ matrices[1] @ spaces[1][0].T, spaces[1][0].T, 1e-10)
    assert float(inverse[:5, 5:].abs().max()) == 0.0
    # factor by factor, as the reference says
    want = 0.7 * torch.eye(12, dtype=F64)
    for (p, y, _), (begin, end) in [(s, b) for s in spaces for b in ((0, 5), (5, 12))]:
        p, y = torch.zeros_like(p).index_copy(1, torch.arange(begin, end), p[:, begin:end]), y
        y = torch.zeros_like(y).index_copy(1, torch.arange(begin, end), y[:, begin:end])
        left = torch.eye(12, dtype=F64) - p.T @ y
        want = left @ want @ left.T + p.T @ p
    assert_close(inverse, want, 1e-12)


def test_the_preconditioner_is_kept_until_it_helps_less(generator, monkeypatch):
    from scfmlip.scf import equilibration

    made = []
    plain = equilibration.make_factor
    monkeypatch.setattr(equilibration, "make_factor", lambda *a: made.append(1) or plain(*a))
    memory = SolverMemory()
    for system in trajectory(generator, 6):
        memory = solve(system, memory=memory).memory
    assert len(made) == 1
    # other atoms of the same number: dropped after one solve, or of use
    far = next(trajectory(torch.Generator().manual_seed(9), 1))
    chi, stiff = far[1], 20 * far[2]
    stiff[::2] /= 100
    for _ in range(4):
        found = solve((far[0], chi, stiff), memory=memory)
        assert_close(found.state, solve((far[0], chi, stiff)).state, 1e-6)
        memory = found.memory


def test_restart_files_hold_it(generator):
    memory = SolverMemory()
    for system in trajectory(generator, 4):
        memory = solve(system, memory=memory).memory
    again = SolverMemory.from_state(memory.state_dict())
    for name in ("fresh", "fewest", "symmetric", "affine"):
        assert getattr(again, name) == getattr(memory, name)
    found, want = solve(system, memory=again), solve(system, memory=memory)
    assert torch.equal(found.state, want.state)
    assert int(found.iterations) == int(want.iterations)


def test_other_sizes_and_other_solvers_do_no_harm(generator):
    small = next(trajectory(generator, 1))
    memory = solve(small, memory=SolverMemory()).memory
    large = next(trajectory(generator, 1, 2))
    found = solve(large, 2, memory=memory)
    assert_close(found.state, solve(large, 2).state, 1e-6)
    # of a fixed point
    other = scfmlip.fixed_point(
        lambda s: 1 - 0.5 * s, torch.zeros(27, 1).double(), memory=SolverMemory()
    ).memory
    assert_close(solve(small, memory=other).state, solve(small).state, 1e-6)
    # dense solves hand it on
    assert solve(small, memory=memory, method="dense").memory is memory
    back = scfmlip.fixed_point(lambda s: 1 - 0.5 * s, torch.zeros(27, 1).double(), memory=memory)
    assert_close(back.state, torch.full((27, 1), 2 / 3).double(), 1e-6)
