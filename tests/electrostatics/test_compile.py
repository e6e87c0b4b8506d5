"""torch.compile(fullgraph=True) of energies, forces and features, with a plan made outside."""

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import BOUNDARIES, Case, boundary_case

F64 = torch.float64


class Compiled:
    """A function of positions and multipoles, compiled once, that counts its compilations."""

    def __init__(self, function, backend="aot_eager", dynamic=None):
        self.graphs = 0

        def counting(module, inputs):
            self.graphs += 1
            return torch._dynamo.lookup_backend(backend)(module, inputs)

        self.call = torch.compile(function, backend=counting, fullgraph=True, dynamic=dynamic)

    def __call__(self, *arguments):
        return self.call(*arguments)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield
    torch._dynamo.reset()


def functions(case: Case, **changes):
    """Energy, energy and forces, features, a training loss: of positions and multipoles."""
    operator = case.coulomb(feature_widths=(1.5, 2.5), **changes)
    plan = operator.plan(case.cell, case.pbc, case.batch_idx, len(case.positions))
    dtype = case.positions.dtype
    fields = {k: torch.as_tensor(v, dtype=dtype) for k, v in case.fields.items()}

    def prepare(r):
        return operator.prepare(r, case.cell, plan=plan, **fields)

    def energy(r, p):
        return prepare(r).energy(p)

    def energy_and_forces(r, p):
        r = r.detach().requires_grad_()
        value = prepare(r).energy(p)
        (gradient,) = torch.autograd.grad(value.sum(), r)
        return value.detach(), -gradient

    def features(r, p):
        return prepare(r).features(p, widths=(1.5, 2.5))

    def potential(r, p):
        return prepare(r).potential(p)

    return {
        "energy": energy,
        "energy and forces": energy_and_forces,
        "features": features,
        "potential": potential,
    }


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("what", ["energy and forces", "features", "potential"])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_one_graph_for_all_positions(name, what, generator):
    """Equal to eager, compiled once, and not again when positions or multipoles change."""
    case = boundary_case(name, generator)
    eager = functions(case)[what]
    compiled = Compiled(eager)
    compiled(case.positions, case.rows)
    first = compiled.graphs
    for shift in (0.0, 0.1, -0.3):
        r, p = case.positions + shift * torch.cos(case.positions), case.rows * (1 + shift)
        for got, want in zip(as_tuple(compiled(r, p)), as_tuple(eager(r, p)), strict=True):
            assert_close(got, want)
    assert compiled.graphs == first


@pytest.mark.parametrize("name", ["charged crystal", "molecule", "batch of all"])
def test_gradients_outside(name, generator):
    """A compiled energy, differentiated by its caller: forces and potentials."""
    case = boundary_case(name, generator)
    eager = functions(case)["energy"]
    compiled = Compiled(eager)
    found = []
    for function in (compiled, eager):
        r, p = case.positions.clone().requires_grad_(), case.rows.clone().requires_grad_()
        found.append(torch.autograd.grad(function(r, p).sum(), (r, p)))
    for got, want in zip(*found, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("name", ["crystal", "charged slab"])
def test_cells_may_move_within_a_plan(name, generator):
    """A strained cell is an input like the positions: stress from one graph."""
    case = boundary_case(name, generator)
    operator = case.coulomb()
    plan = operator.plan(case.cell, case.pbc, None, len(case.positions))

    def stress(r, cell, p):
        strain = torch.zeros(3, 3, dtype=F64).requires_grad_()
        deformation = torch.eye(3, dtype=F64) + strain
        value = operator.prepare(r @ deformation, cell @ deformation, plan=plan).energy(p)
        return value.detach(), torch.autograd.grad(value.sum(), strain)[0]

    compiled = Compiled(stress)
    for scale in (1.0, 1.01):
        arguments = (case.positions * scale, case.cell * scale, case.rows)
        for got, want in zip(compiled(*arguments), stress(*arguments), strict=True):
            assert_close(got, want)
    assert compiled.graphs == 1


def test_float32(generator):
    case = boundary_case("batch of all", generator)
    case.positions, case.cell, case.rows = (x.float() for x in (case.positions, case.cell, case.rows))
    eager = functions(case)["energy and forces"]
    for got, want in zip(
        Compiled(eager)(case.positions, case.rows), eager(case.positions, case.rows), strict=True
    ):
        assert got.dtype == torch.float32
        assert_close(got, want)


def test_dynamic_shapes_are_not_needed_but_harmless(generator):
    """Asking for dynamic shapes must not change a number: the plan fixes the sizes."""
    case = boundary_case("crystal", generator)
    eager = functions(case)["energy"]
    compiled = Compiled(eager, dynamic=True)
    assert_close(compiled(case.positions, case.rows), eager(case.positions, case.rows))


@pytest.mark.parametrize("name", ["charged slab"])
def test_inductor(name, generator):
    """The default backend, which checks what the operators say about their results against the results."""
    case = boundary_case(name, generator, n_atoms=3)
    eager = functions(case)["energy and forces"]
    compiled = Compiled(eager, "inductor")
    for got, want in zip(compiled(case.positions, case.rows), eager(case.positions, case.rows), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("what", ["energy and forces"])
def test_inductor_with_two_crystals(what, generator):
    """Two systems and no other: per-system values are expanded to atoms and wave vectors."""
    parts = [boundary_case("crystal", generator, n_atoms=n) for n in (3, 4)]
    index = torch.tensor([0] * 3 + [1] * 4)
    positions, rows = (torch.cat([getattr(p, k) for p in parts]) for k in ("positions", "rows"))
    case = Case(
        positions, torch.stack([p.cell for p in parts]), [p.pbc for p in parts], rows, {}, batch_idx=index
    )
    eager = functions(case)[what]
    compiled = Compiled(eager, "inductor")
    for got, want in zip(as_tuple(compiled(positions, rows)), as_tuple(eager(positions, rows)), strict=True):
        assert_close(got, want)


def test_no_synchronising_checks_inside(generator):
    """NaN goes through a compiled graph instead of breaking it; eager refuses it."""
    case = boundary_case("molecule", generator)
    eager = functions(case)["energy"]
    compiled = Compiled(eager)
    broken = case.positions.clone()
    broken[1, 0] = torch.nan
    assert compiled(broken, case.rows).isnan().all()
    with pytest.raises(ValueError, match="positions holds NaN"):
        eager(broken, case.rows)
