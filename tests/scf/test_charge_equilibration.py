"""Charge equilibration against dense linear algebra, its derivatives, its failures."""

import math

import pytest
import torch
from tolerances import assert_close

from scf import oracles
from scfmlip import Coulomb, charge_equilibration
from scfmlip.scf import ConvergenceError, StateExtrapolator, Status
from scfmlip.scf.quadratic import QuadraticProblem
from scfmlip.units import COULOMB_CONSTANT

F64 = torch.float64
SIGMA = 1.0


def crystal(n, generator, dtype=F64):
    """Atoms on a jittered lattice at 0.1 per cubic angstrom: positions, cell, chi, hardness."""
    edge, side = (n / 0.1) ** (1 / 3), math.ceil(n ** (1 / 3) - 1e-9)
    axis = (torch.arange(side, dtype=F64) + 0.5) * edge / side
    positions = torch.cartesian_prod(axis, axis, axis)[:n]
    positions = positions + 0.3 * torch.rand(n, 3, generator=generator, dtype=F64)
    chi = torch.randn(n, generator=generator, dtype=F64)
    hardness = 1 + torch.rand(n, generator=generator, dtype=F64)
    return positions.to(dtype), edge * torch.eye(3, dtype=dtype), chi.to(dtype), hardness.to(dtype)


def dense_answer(matrix, chi, totals, groups):
    """The bordered system, solved at once: ``[A E; E^T 0] (q, -mu) = (-chi, Q)``."""
    n, m = len(chi), len(totals)
    border = torch.nn.functional.one_hot(groups, m).double()
    top = torch.cat((matrix, border), 1)
    bottom = torch.cat((border.T, torch.zeros(m, m, dtype=F64)), 1)
    solution = torch.linalg.solve(torch.cat((top, bottom)), torch.cat((-chi, totals)))
    return solution[:n], -solution[n:]


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("periodic", [False, True])
def test_against_the_bordered_system(periodic, method, generator):
    """The Coulomb matrix comes from another program: pair by pair, erf and Ewald sums."""
    positions, cell, chi, hardness = crystal(12, generator)
    widths = torch.full((12,), SIGMA, dtype=F64)
    matrix = oracles.open_matrix(positions, widths)
    if periodic:
        matrix = oracles.periodic_matrix(positions, cell, widths)
    matrix = matrix + torch.diag(hardness)
    groups = torch.zeros(12, dtype=torch.int64)
    want, mu = dense_answer(matrix, chi, torch.tensor([1.0], dtype=F64), groups)
    operator = Coulomb(l_max=0, sigma=SIGMA, tolerance=1e-13)
    geometry = operator.prepare(positions, cell if periodic else None)
    solution = charge_equilibration(geometry, chi, hardness, 1.0, method=method, tolerance=1e-13)
    assert_close(solution.charges, want, 1e-9)
    assert_close(solution.chemical_potential, mu, 1e-9)
    energy = chi @ want + 0.5 * want @ matrix @ want
    assert_close(solution.energy, energy[None], 1e-9)
    assert solution.status.tolist() == [Status.CONVERGED]
    assert float(solution.residual) < 1e-12


def test_two_charges_by_hand():
    """Far apart: q = (chi_2 - chi_1) / (J_1 + J_2 + 2 self - 2 k / r)."""
    r = 40.0
    positions = torch.tensor([[0.0, 0, 0], [r, 0, 0]], dtype=F64)
    chi = torch.tensor([0.7, -0.4], dtype=F64)
    hardness = torch.tensor([2.0, 3.0], dtype=F64)
    solution = charge_equilibration(Coulomb(l_max=0, sigma=SIGMA).prepare(positions), chi, hardness, 0.0)
    own = COULOMB_CONSTANT / (math.sqrt(math.pi) * SIGMA)
    q = (chi[1] - chi[0]) / (hardness.sum() + 2 * own - 2 * COULOMB_CONSTANT / r)
    assert_close(solution.charges, torch.stack((q, -q)), 1e-12)


@pytest.mark.parametrize("method", ["dense", "cg"])
def test_a_batch_equals_a_loop(method, generator):
    """Systems of different size and boundary, one of a single atom."""
    sizes, pbcs, totals = (
        [7, 1, 20, 12],
        [[True] * 3, [False] * 3, [False] * 3, [True, True, False]],
        [0, 1, -1, 0.5],
    )
    parts = [crystal(n, generator) for n in sizes]
    positions, chi, hardness = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3))
    cells = torch.stack([p[1] for p in parts])
    index = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    operator = Coulomb(l_max=0, sigma=SIGMA)
    geometry = operator.prepare(positions, cells, pbcs, index)
    options = {"method": method, "tolerance": 1e-12}
    together = charge_equilibration(geometry, chi, hardness, torch.tensor(totals, dtype=F64), **options)
    start = 0
    for i, n in enumerate(sizes):
        mine = slice(start, start + n)
        start += n
        alone = charge_equilibration(
            operator.prepare(positions[mine], cells[i], pbcs[i]),
            chi[mine],
            hardness[mine],
            totals[i],
            **options,
        )
        assert_close(together.charges[mine], alone.charges, 1e-9)
        assert_close(together.energy[i : i + 1], alone.energy, 1e-9)
        assert_close(together.chemical_potential[i : i + 1], alone.chemical_potential, 1e-8)
        assert float(together.charges[mine].sum()) == pytest.approx(totals[i], abs=1e-12)


@pytest.mark.parametrize("method", ["dense", "cg"])
def test_fragments_keep_their_charge(method, generator):
    positions, cell, chi, hardness = crystal(12, generator)
    fragments = torch.tensor([0, 1, 2] * 4)
    totals = torch.tensor([1.0, -1.0, 0.25], dtype=F64)
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell)
    solution = charge_equilibration(
        geometry, chi, hardness, totals, fragments=fragments, method=method, tolerance=1e-13
    )
    matrix = oracles.periodic_matrix(positions, cell, torch.full((12,), SIGMA, dtype=F64))
    matrix = matrix + torch.diag(hardness)
    want, mu = dense_answer(matrix, chi, totals, fragments)
    assert_close(solution.charges, want, 1e-5)  # the operator's sum is cut at 1e-6 eV
    assert_close(solution.chemical_potential, mu, 1e-5)


@pytest.mark.parametrize("method", ["dense", "cg"])
def test_constant_potential_is_the_inverse_of_constant_charge(method, generator):
    """Given the potential that a charge brought about, the charge comes back; the value is E - mu Q."""
    positions, cell, chi, hardness = crystal(10, generator)
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell)
    options = {"method": method, "tolerance": 1e-13}
    first = charge_equilibration(geometry, chi, hardness, 0.7, **options)
    again = charge_equilibration(
        geometry, chi, hardness, None, chemical_potential=first.chemical_potential, **options
    )
    assert_close(again.charges, first.charges, 1e-9)
    assert_close(again.energy, first.energy - 0.7 * first.chemical_potential, 1e-9)


@pytest.mark.parametrize("periodic", [False, True])
def test_dipoles_polarise_in_a_field(periodic, generator):
    """One neutral atom: d = (E - chi_d) / (J + self); in a crystal's plane with its images too."""
    positions = torch.zeros(1, 3, dtype=F64)
    cell, pbc = (12.0 * torch.eye(3, dtype=F64), [True, True, False]) if periodic else (None, None)
    field = torch.tensor([0.0, 0.0, 0.2], dtype=F64)
    geometry = Coulomb(l_max=1, sigma=SIGMA).prepare(positions, cell, pbc, external_field=field)
    chi = torch.zeros(1, 4, dtype=F64)
    hardness = torch.tensor([[5.0, 3.0, 3.0, 3.0]], dtype=F64)
    solution = charge_equilibration(geometry, chi, hardness, 0.0, method="dense")
    own = COULOMB_CONSTANT / (6 * math.sqrt(math.pi) * SIGMA**3)
    if periodic:
        unit = torch.tensor([[0.0, 0, 0, 1.0]], dtype=F64)
        bare = Coulomb(l_max=1, sigma=SIGMA).prepare(positions, cell, pbc)
        own = float(bare.potential(unit, self_interaction=True)[0, 3])
    assert_close(solution.state[0, 1:], field / (3.0 + own), 1e-6)
    assert abs(float(solution.charges)) < 1e-12


def test_several_widths(generator):
    """Atoms of two elements: the same as an operator of each width would see them."""
    positions, _, chi, hardness = crystal(8, generator)
    which = torch.tensor([0, 1] * 4)
    widths = torch.tensor([0.6, 1.3], dtype=F64)
    gamma = (widths[which][:, None] ** 2 + widths[which][None] ** 2).sqrt()
    r = torch.cdist(positions, positions) + torch.eye(8, dtype=F64)
    matrix = COULOMB_CONSTANT * torch.erf(r / (math.sqrt(2) * gamma)) / r
    own = COULOMB_CONSTANT / (math.sqrt(math.pi) * widths[which])
    matrix = matrix - torch.diag(matrix.diagonal()) + torch.diag(own + hardness)
    want, _ = dense_answer(matrix, chi, torch.zeros(1, dtype=F64), torch.zeros(8, dtype=torch.int64))
    geometry = Coulomb(l_max=0, sigma=(0.6, 1.3)).prepare(positions)
    for method in ("dense", "cg"):
        solution = charge_equilibration(
            geometry, chi, hardness, width_index=which, method=method, tolerance=1e-13
        )
        assert_close(solution.charges, want, 1e-9)
    with pytest.raises(ValueError, match="pass width_index"):
        charge_equilibration(geometry, chi, hardness)


@pytest.mark.parametrize("l_max", [0, 1])
def test_whole_matrices_are_the_operator(l_max, generator):
    """Column by column, in a batch of triclinic crystals of different size."""
    sizes, dim = [3, 5], (l_max + 1) ** 2
    parts = [crystal(n, generator) for n in sizes]
    positions = torch.cat([p[0] for p in parts])
    cells = torch.stack([p[1] for p in parts]) + torch.rand(2, 3, 3, generator=generator, dtype=F64)
    index = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    geometry = Coulomb(l_max=l_max, sigma=SIGMA).prepare(positions, cells, batch_idx=index)
    matrices = geometry.kspace.matrices(torch.full((8,), SIGMA, dtype=F64), dim)
    units = torch.eye(8 * dim, dtype=F64).view(8, dim, 8 * dim).movedim(2, 1)
    whole = geometry.potential(units, self_interaction=True).movedim(1, 2).reshape(8 * dim, 8 * dim)
    assert_close(torch.block_diag(*matrices), whole, 1e-12)


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize(
    "kind", ["crystal", "molecule", "slab in a field", "fragments", "potential", "dipoles"]
)
def test_derivatives(kind, method, generator):
    """Of charges, energy and potential, first and second, in everything."""
    n = 2 if kind == "dipoles" else 4
    positions, cell, chi, hardness = crystal(n, generator)
    cell = cell + 0.3 * torch.rand(3, 3, generator=generator, dtype=F64)
    pbc = {"molecule": [False] * 3, "slab in a field": [True, True, False]}.get(kind, [True] * 3)
    l_max = 1 if kind == "dipoles" else 0
    operator = Coulomb(l_max=l_max, sigma=SIGMA, kspace_cutoff=2.5, tolerance=0.5, compat=None)
    plan = operator.plan(cell, pbc, None, n)
    if l_max:
        chi = torch.cat((chi[:, None], torch.randn(n, 3, generator=generator, dtype=F64)), 1)
        hardness = hardness[:, None] + torch.rand(n, 4, generator=generator, dtype=F64)
    field = torch.tensor([0.1], dtype=F64)
    totals = torch.tensor([0.5, -0.3], dtype=F64)

    def function(positions, cell, chi, hardness, totals, field):
        fields = {}
        if kind == "slab in a field":
            normal = torch.linalg.cross(cell[0], cell[1])
            fields["external_field"] = field * normal / normal.norm()
        geometry = operator.prepare(positions, cell, plan=plan, **fields)
        options = {"method": method, "tolerance": 1e-14, "on_failure": "ignore"}
        if kind == "fragments":
            options["fragments"] = torch.tensor([0, 1, 0, 1])
        if kind == "potential":
            options["chemical_potential"] = totals[:1]
        total = None if kind == "potential" else totals if kind == "fragments" else totals[:1]
        solution = charge_equilibration(geometry, chi, hardness, total, **options)
        return (solution.state**3).sum(), solution.energy, solution.chemical_potential

    inputs = [t.clone().requires_grad_() for t in (positions, cell, chi, hardness, totals, field)]
    if kind != "slab in a field":
        inputs[5].requires_grad_(False)
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6)
    if method == "dense" or kind == "crystal":
        assert torch.autograd.gradgradcheck(function, inputs, atol=1e-5, fast_mode=True)


def test_a_gradient_of_the_energy_needs_no_solve(generator, monkeypatch):
    """The counts of the theory: forces 0 more solves, a force loss 1, a loss of charges 1."""
    from scfmlip.scf import equilibration

    solves = []
    original = equilibration.conjugate_gradients

    def counted(*arguments, **options):
        solves.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(equilibration, "conjugate_gradients", counted)
    positions, cell, chi, hardness = crystal(20, generator)
    positions.requires_grad_()
    chi.requires_grad_()
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell)
    solution = charge_equilibration(geometry, chi, hardness, method="cg")
    assert len(solves) == 1
    (slope,) = torch.autograd.grad(solution.energy.sum(), positions, create_graph=True)
    assert len(solves) == 1
    torch.autograd.grad((slope**2).sum(), chi, retain_graph=True)
    assert len(solves) == 2
    torch.autograd.grad((solution.charges**2).sum(), (positions, chi))
    assert len(solves) == 3


def test_a_gradient_in_the_source_alone_needs_no_operator_at_the_solution(generator, monkeypatch):
    positions, cell, chi, hardness = crystal(10, generator)
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell)
    weights, made = torch.randn(10, generator=generator, dtype=F64), []
    prepare = QuadraticProblem.prepare
    monkeypatch.setattr(QuadraticProblem, "prepare", lambda *a: made.append(1) or prepare(*a))

    def slope(leaf, *arguments):
        loss = (charge_equilibration(geometry, *arguments, 0.0).charges * weights).sum()
        made.clear()
        return torch.autograd.grad(loss, leaf)[0]

    both = chi.clone().requires_grad_(), hardness.clone().requires_grad_()
    alone = chi.clone().requires_grad_()
    want = slope(both[0], *both)
    assert len(made) == 1
    assert_close(slope(alone, alone, hardness), want, 1e-12)
    assert not made


def test_iterations(generator):
    """Sparse factors cut the iterations to a fraction; a warm start cuts them further."""
    positions, cell, chi, hardness = crystal(512, generator)
    operator = Coulomb(l_max=0, sigma=SIGMA)
    count = {}
    for name in ("none", "jacobi", "fsai"):
        solution = charge_equilibration(
            operator.prepare(positions, cell), chi, hardness, method="cg", preconditioner=name
        )
        count[name] = int(solution.iterations)
    assert count["fsai"] <= 15
    assert count["fsai"] * 2.5 <= min(count["none"], count["jacobi"])
    moved = positions + 0.002 * torch.randn(512, 3, generator=generator, dtype=F64)
    warm = charge_equilibration(
        operator.prepare(moved, cell), chi, hardness, method="cg", initial=solution.state
    )
    assert int(warm.iterations) < count["fsai"]


def test_extrapolation_along_a_trajectory(generator):
    """Smooth motion: a quadratic guess leaves a few iterations; polynomials are met exactly."""
    extrapolator = StateExtrapolator(order=2)
    assert extrapolator.guess() is None
    for t in range(4):
        if t == 3:
            assert_close(extrapolator.guess(), torch.full((2, 1), 1.0 + 3 * t - 2 * t**2, dtype=F64), 1e-12)
        extrapolator.add(torch.full((2, 1), 1.0 + 3 * t - 2 * t**2, dtype=F64))
    extrapolator = StateExtrapolator(order=2)
    positions, cell, chi, hardness = crystal(216, generator)
    velocity = 0.01 * torch.randn(216, 3, generator=generator, dtype=F64)
    operator = Coulomb(l_max=0, sigma=SIGMA)
    counts = []
    for t in range(5):
        solution = charge_equilibration(
            operator.prepare(positions + t * velocity, cell),
            chi,
            hardness,
            method="cg",
            initial=extrapolator.guess(),
        )
        extrapolator.add(solution.state)
        counts.append(int(solution.iterations))
    assert counts[-1] <= 4 < counts[0]


def test_float32_does_not_diverge(generator):
    """Asked for more than its digits allow it stops there, and keeps the total charge."""
    positions, cell, chi, hardness = crystal(216, generator)
    exact = charge_equilibration(
        Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell), chi, hardness, method="dense"
    )
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions.float(), cell.float())
    for preconditioner in ("none", "fsai"):
        single = charge_equilibration(
            geometry,
            chi.float(),
            hardness.float(),
            method="cg",
            preconditioner=preconditioner,
            tolerance=1e-12,
        )
        assert_close(single.charges, exact.charges, 2e-5)
        assert abs(float(single.charges.double().sum())) < 1e-5


def test_failures_name_the_system(generator):
    """The others of the batch are still right."""
    parts = [crystal(8, generator) for _ in range(3)]
    positions, chi, hardness = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3))
    index = torch.arange(3).repeat_interleave(8)
    cells = torch.stack([p[1] for p in parts])
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cells, None, index)
    good = charge_equilibration(geometry, chi, hardness, tolerance=1e-12)
    bad = hardness.clone()
    bad[8:16] = -30.0
    for method in ("dense", "cg"):
        with pytest.raises(ConvergenceError, match=r"system\(s\) 1 .*hardness plus Coulomb matrix") as caught:
            charge_equilibration(geometry, chi, bad, method=method)
        assert caught.value.status.tolist() == [0, Status.INDEFINITE, 0]
        rest = charge_equilibration(geometry, chi, bad, method=method, on_failure="ignore", tolerance=1e-12)
        assert rest.status.tolist() == [0, Status.INDEFINITE, 0]
        assert_close(rest.charges[:8], good.charges[:8], 1e-9)
        assert_close(rest.charges[16:], good.charges[16:], 1e-9)
    with pytest.raises(ConvergenceError, match="allow more iterations"):
        charge_equilibration(geometry, chi, hardness, method="cg", preconditioner="none", max_iterations=2)
    with pytest.warns(UserWarning, match="did not reach the tolerance"):
        charge_equilibration(
            geometry, chi, hardness, method="cg", preconditioner="none", max_iterations=2, on_failure="warn"
        )


def test_bad_input(generator):
    positions, cell, chi, hardness = crystal(6, generator)
    geometry = Coulomb(l_max=0, sigma=SIGMA).prepare(positions, cell)
    with pytest.raises(ValueError, match=r"hardness must have shape \[6, 1\], got \[5\]"):
        charge_equilibration(geometry, chi, hardness[:5])
    with pytest.raises(TypeError, match=r"electronegativity is torch\.float32"):
        charge_equilibration(geometry, chi.float(), hardness)
    with pytest.raises(ValueError, match="electronegativity holds NaN"):
        charge_equilibration(geometry, chi * torch.nan, hardness)
    with pytest.raises(ValueError, match="either total_charge or chemical_potential"):
        charge_equilibration(geometry, chi, hardness, 0.0, chemical_potential=1.0)
    with pytest.raises(ValueError, match=r"total_charge must be a number or have shape \[1\]"):
        charge_equilibration(geometry, chi, hardness, torch.zeros(3, dtype=F64))
    with pytest.raises(ValueError, match="without gaps"):
        charge_equilibration(geometry, chi, hardness, fragments=torch.tensor([0, 0, 2, 2, 0, 0]))
    with pytest.raises(ValueError, match="method must be"):
        charge_equilibration(geometry, chi, hardness, method="lu")
    with pytest.raises(ValueError, match="preconditioner must be"):
        charge_equilibration(geometry, chi, hardness, method="cg", preconditioner="ilu")


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["crystals", "mixed", "potential", "widths"])
def test_small_systems_in_one_launch(kind, generator):
    """What "auto" does on a GPU, in the interpreter: the answers and derivatives of the factorised way."""
    sizes = [4, 1, 6]
    pbcs = [[True] * 3] * 3 if kind != "mixed" else [[True] * 3, [False] * 3, [True, True, False]]
    parts = [crystal(n, generator) for n in sizes]
    positions, chi, hardness = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3))
    cells = torch.stack([p[1] for p in parts])
    index = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    operator = Coulomb(l_max=0, sigma=(0.8, 1.1) if kind == "widths" else SIGMA, tolerance=1e-3)
    options = {"total_charge": torch.tensor([0.5, 1.0, -0.5], dtype=F64), "tolerance": 1e-13}
    if kind == "potential":
        options |= {"total_charge": None, "chemical_potential": torch.tensor([0.5, 1.0, -0.5], dtype=F64)}
    if kind == "widths":
        options["width_index"] = torch.arange(11) % 2
    found = []
    for method in ("auto", "dense"):
        leaves = [t.clone().requires_grad_() for t in (positions, chi, hardness)]
        geometry = operator.prepare(leaves[0], cells, pbcs, index)
        solution = charge_equilibration(geometry, leaves[1], leaves[2], method=method, **options)
        loss = solution.energy.sum() + (solution.charges**3).sum()
        found.append((solution, *torch.autograd.grad(loss, leaves)))
    assert int(found[0][0].iterations.max()) > 0
    assert_close(found[0][0].charges, found[1][0].charges, 1e-9)
    assert_close(found[0][0].chemical_potential, found[1][0].chemical_potential, 1e-9)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        assert_close(a, b, 1e-8)


def test_nobody_holds_a_charge():
    """A system without atoms is fine while it is neutral."""
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]], dtype=torch.float64)
    batch = torch.tensor([0, 2])
    geometry = Coulomb(l_max=0).prepare(
        positions, torch.eye(3, dtype=torch.float64).expand(3, 3, 3) * 6, True, batch
    )
    chi, hardness = torch.ones(2, dtype=torch.float64), 10 * torch.ones(2, dtype=torch.float64)
    totals = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    charges = charge_equilibration(geometry, chi, hardness, totals).charges
    assert charges.tolist() == pytest.approx([1.0, -1.0])
    with pytest.raises(ValueError, match=r"system 1 has no atoms and cannot hold total_charge 0\.5 e"):
        charge_equilibration(geometry, chi, hardness, totals + 0.5)


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("widths", [1, 2])
def test_hardness_of_charges_alone(widths, method, generator):
    """With l_max = 1 it means atoms without polarizability: charges as with l_max = 0, no dipoles."""
    positions, cell, chi, hardness = crystal(6, generator)
    sigma = (SIGMA, SIGMA + 0.4)[:widths]
    index = {} if widths == 1 else {"width_index": torch.arange(6) % 2}
    want, got = (
        charge_equilibration(
            Coulomb(l_max=l_max, sigma=sigma, tolerance=1e-10).prepare(positions, cell),
            chi,
            hardness,
            0.5,
            method=method,
            tolerance=1e-12,
            **index,
        )
        for l_max in (0, 1)
    )
    assert got.state.shape == (6, 4)
    assert not got.state[:, 1:].any()
    assert_close(got.charges, want.charges, 1e-8)
    assert_close(got.energy, want.energy, 1e-8)
    again = charge_equilibration(
        Coulomb(l_max=1, sigma=sigma).prepare(positions, cell),
        chi,
        hardness,
        0.5,
        initial=got.state,
        method=method,
        **index,
    )
    assert_close(again.charges, got.charges, 1e-5)


def test_hardness_of_charges_alone_and_a_source_of_dipoles(generator):
    positions, cell, chi, hardness = crystal(6, generator)
    geometry = Coulomb(l_max=1, sigma=SIGMA).prepare(positions, cell)
    both = torch.cat((chi[:, None], chi[:, None].expand(-1, 3)), 1)
    with pytest.raises(ValueError, match=r"hardness \[6\] is of charges alone.* give hardness \[6, 4\]"):
        charge_equilibration(geometry, both, hardness)
    with pytest.raises(ValueError, match=r"hardness must have shape \[6, 4\], got \[6, 3\].* or \[6\] of ch"):
        charge_equilibration(geometry, chi, hardness[:, None].expand(-1, 3))
