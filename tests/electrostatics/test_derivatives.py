"""Forces, stress, responses and their derivatives: finite differences and gradcheck, every boundary."""

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import BOUNDARIES, boundary_case
from scfmlip import Coulomb

F64 = torch.float64
# test_invariances.py shows that a batch, forces too, is its systems one by one
SINGLE = [n for n in BOUNDARIES if n != "batch of all"]
WITH_CELL = [n for n in SINGLE if n not in ("molecule", "molecule in a field")]
STEP = 1e-3
# five points, error of order STEP^4: 1e-9 of the third derivatives' scale
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
CLOSE = 1e-8  # relative to the largest component, finite differences of float64


def differences(function, x, step=STEP):
    """Derivative of ``function(x)`` (any shape) in every component of x: ``[*value, *x]``."""
    columns = []
    for i in range(x.numel()):
        change = torch.zeros(x.numel(), dtype=F64)
        change[i] = step
        change = change.view(x.shape)
        with torch.no_grad():
            columns.append(sum(w / step * function(x + n * change) for n, w in STENCIL.items()))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


class Setting:
    """A case with its plan made once, as a function of everything it can be differentiated in."""

    def __init__(self, name, generator, n_atoms=3, edge=5.0, field=False, **options):
        self.case = boundary_case(name, generator, n_atoms, edge)
        self.operator = self.case.coulomb(**{"kspace_cutoff": 2.6, **options})
        case = self.case
        self.plan = self.operator.plan(case.cell, case.pbc, case.batch_idx, len(case.positions))
        self.fields = dict(case.fields)
        if field and "external_field" not in self.fields and name in ("slab", "molecule"):
            self.fields["external_field"] = torch.tensor([0.0, 0.0, 0.1], dtype=F64)

    def geometry(self, r=None, cell=None, **fields):
        # a strained slab's normal turns away from a fixed field: not the user's concern here
        operator = self.operator
        object.__setattr__(operator, "validate", False)
        r = self.case.positions if r is None else r
        cell = self.case.cell if cell is None else cell
        return operator.prepare(r, cell, plan=self.plan, **{**self.fields, **fields})

    def strained(self, strain, r=None):
        """Everything deformed: positions and cell times ``1 + strain``."""
        deformation = torch.eye(3, dtype=F64) + strain
        r = self.case.positions if r is None else r
        return self.geometry(r @ deformation, self.case.cell @ deformation)


@pytest.mark.parametrize("name", SINGLE)
def test_forces(name, generator):
    setting = Setting(name, generator)
    rows = setting.case.rows
    r = setting.case.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(setting.geometry(r).energy(rows).sum(), r)
    want = differences(lambda x: setting.geometry(x).energy(rows).sum(), setting.case.positions)
    assert_close(gradient, want, CLOSE)


@pytest.mark.parametrize("name", WITH_CELL)
def test_stress(name, generator):
    """The explicit part, through positions, and the implicit one, through wave vectors and volume."""
    setting = Setting(name, generator)
    rows = setting.case.rows
    strain = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    (virial,) = torch.autograd.grad(setting.strained(strain).energy(rows).sum(), strain)
    want = differences(lambda s: setting.strained(s).energy(rows).sum(), torch.zeros(3, 3, dtype=F64))
    assert_close(virial, want, CLOSE)


@pytest.mark.parametrize("name", ["crystal", "charged crystal", "molecule in a box"])
def test_stress_is_symmetric(name, generator):
    """A rotation costs nothing: no antisymmetric part, dipoles turning with the rest."""
    setting = Setting(name, generator)
    rows = setting.case.rows
    strain = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    turned = torch.cat((rows[:, :1], rows[:, 1:] @ (torch.eye(3, dtype=F64) + strain)), 1)
    (virial,) = torch.autograd.grad(setting.strained(strain).energy(turned).sum(), strain)
    assert_close(virial, virial.T, 1e-9)


@pytest.mark.parametrize("name", WITH_CELL)
def test_cell_gradient_at_fixed_positions(name, generator):
    setting = Setting(name, generator)
    rows = setting.case.rows
    cell = setting.case.cell.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(setting.geometry(cell=cell).energy(rows).sum(), cell)
    want = differences(lambda c: setting.geometry(cell=c).energy(rows).sum(), setting.case.cell)
    assert_close(gradient, want, CLOSE)


def test_the_wave_vectors_of_a_plan_are_enough_for_its_strain(generator):
    """New wave vectors that a strain brings within the cutoff carry next to nothing."""
    case = boundary_case("crystal", generator)
    strained = case.cell * 1.02
    operator = case.coulomb()
    old = operator.prepare(case.positions * 1.02, strained, plan=operator.plan(case.cell, case.pbc, None, 4))
    new = operator.prepare(case.positions * 1.02, strained, case.pbc)
    assert float((old.energy(case.rows) - new.energy(case.rows)).abs()) < 1e-5


@pytest.mark.parametrize("name", SINGLE)
def test_derivative_in_the_multipoles(name, generator):
    setting = Setting(name, generator)
    geometry = setting.geometry()
    want = differences(lambda p: geometry.energy(p).sum(), setting.case.rows)
    assert_close(geometry.potential(setting.case.rows), want, CLOSE)


@pytest.mark.parametrize("name", ["slab", "molecule", "molecule in a box"])
def test_derivative_in_the_fields(name, generator):
    """dE/dE = minus the dipole, dE/dV = the charge; mixed with positions, the charges."""
    setting = Setting(name, generator)
    rows, r = setting.case.rows, setting.case.positions.clone().requires_grad_()
    field = torch.tensor([0.1, 0.2, -0.3], dtype=F64, requires_grad=True)
    volts = torch.tensor(0.4, dtype=F64, requires_grad=True)
    energy = setting.geometry(r, external_field=field, external_potential=volts).energy(rows).sum()
    by_field, by_volts, force = torch.autograd.grad(energy, (field, volts, r), create_graph=True)
    assert_close(by_field, -(rows[:, :1] * r + rows[:, 1:]).sum(0))
    assert_close(by_volts, rows[:, 0].sum())
    # Born charges: d(force)/d(field)
    (born,) = torch.autograd.grad(force[1, 2], field)
    assert_close(born, torch.tensor([0.0, 0.0, -float(rows[1, 0])], dtype=F64))


@pytest.mark.parametrize("name", SINGLE)
def test_features_in_the_positions(name, generator):
    setting = Setting(name, generator)
    rows = setting.case.rows
    first = setting.geometry().features(rows, widths=(1.5, 2.5))
    weights = torch.cos(torch.arange(first.numel(), dtype=F64)).view_as(first)

    def contracted(x):
        return (weights * setting.geometry(x).features(rows, widths=(1.5, 2.5))).sum()

    r = setting.case.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contracted(r), r)
    assert_close(gradient, differences(contracted, setting.case.positions), CLOSE)


@pytest.mark.parametrize("name", WITH_CELL)
def test_a_stress_loss_through_features(name, generator):
    """A loss on the strain derivative of features, differentiated in positions and multipoles."""
    setting = Setting(name, generator)

    def loss(r, p):
        strain = torch.zeros(3, 3, dtype=F64, requires_grad=True)
        features = setting.strained(strain, r).features(p, widths=(1.5, 2.5))
        weights = torch.cos(torch.arange(features.numel(), dtype=F64)).view_as(features)
        (response,) = torch.autograd.grad((weights * features).sum(), strain, create_graph=True)
        return (response**2).sum()

    r, p = setting.case.positions.clone().requires_grad_(), setting.case.rows.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(r, p), (r, p))

    # along one direction: every evaluation takes two derivatives already
    along_r, along_p = (torch.randn(x.shape, generator=generator, dtype=F64) for x in (r, p))
    want = sum(
        w / STEP * loss(r.detach() + n * STEP * along_r, p.detach() + n * STEP * along_p).detach()
        for n, w in STENCIL.items()
    )
    got = (gradients[0] * along_r).sum() + (gradients[1] * along_p).sum()
    assert_close(got, want, CLOSE)


@pytest.mark.parametrize("name", SINGLE)
def test_the_mixed_hessian(name, generator):
    """d/dr (v . dE/dp), which a peer gets silently wrong: against differences and against K v."""
    setting = Setting(name, generator)
    rows = setting.case.rows.clone().requires_grad_()
    v = torch.randn(rows.shape, generator=generator, dtype=F64)
    r = setting.case.positions.clone().requires_grad_()
    energy = setting.geometry(r).energy(rows).sum()
    (by_rows,) = torch.autograd.grad(energy, rows, create_graph=True)
    (mixed,) = torch.autograd.grad((v * by_rows).sum(), r)

    def directional(x):
        return (v * setting.geometry(x).potential(rows)).sum()

    assert_close(mixed, differences(directional, r.detach()), CLOSE)
    (through_potential,) = torch.autograd.grad(directional(r), r)
    assert_close(mixed, through_potential)
    # and the other order: d/dp (w . dE/dr)
    w = torch.randn(r.shape, generator=generator, dtype=F64)
    (by_r,) = torch.autograd.grad(setting.geometry(r).energy(rows).sum(), r, create_graph=True)
    (other,) = torch.autograd.grad((w * by_r).sum(), rows)
    assert_close((v * other).sum(), (w * mixed).sum())


# tiny: gradgradcheck builds Jacobians of Jacobians
TINY = {"n_atoms": 2, "edge": 3.5, "kspace_cutoff": 2.2}


@pytest.mark.parametrize("what", ["energy", "potential", "features"])
@pytest.mark.parametrize("name", SINGLE)
def test_gradcheck(name, what, generator):
    """First and second derivatives in positions, cell, multipoles and field together."""
    setting = Setting(name, generator, field=True, **TINY)
    case = setting.case
    inputs = [case.positions, case.rows]
    if name in WITH_CELL:
        inputs.append(case.cell)
    if "external_field" in setting.fields:
        inputs.append(setting.fields["external_field"])

    def function(r, p, *rest):
        rest = list(rest)
        cell = rest.pop(0) if name in WITH_CELL else None
        fields = {"external_field": rest.pop(0)} if rest else {}
        geometry = setting.geometry(r, cell, **fields)
        if what == "features":
            return geometry.features(p, widths=(1.5, 2.5))
        return getattr(geometry, what)(p)

    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    # random directions instead of whole Jacobians: seconds instead of minutes
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.slow  # whole Jacobians of every second derivative, 20 s
@pytest.mark.parametrize(
    "name", ["crystal", "charged slab", "slab with a counter-charge", "molecule in a box"]
)
def test_whole_second_jacobians(name, generator):
    setting = Setting(name, generator, **TINY)
    case = setting.case

    def function(r, p, cell):
        geometry = setting.geometry(r, cell)
        return torch.cat((geometry.energy(p), geometry.features(p, widths=(1.5,)).flatten()))

    inputs = [x.clone().requires_grad_() for x in (case.positions, case.rows, case.cell)]
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", ["crystal", "molecule"])
def test_third_derivatives(name, generator):
    """Training on Hessians: twice and more, as documented."""
    setting = Setting(name, generator, **TINY)
    rows = setting.case.rows

    def force(r):
        return torch.autograd.grad(setting.geometry(r).energy(rows).sum(), r, create_graph=True)[0]

    r = setting.case.positions.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(force, (r,), fast_mode=True)


@pytest.mark.parametrize("name", SINGLE)
def test_no_forces_on_the_whole(name, generator):
    """Newton's third law, and no torque on a molecule, dipoles turning with it."""
    if name == "molecule in a field" or name == "slab in a field" or name == "slab with a counter-charge":
        pytest.skip("something outside pulls")
    setting = Setting(name, generator, n_atoms=5)
    case = setting.case
    r, rows = case.positions.clone().requires_grad_(), case.rows.clone().requires_grad_()
    force, torque = torch.autograd.grad(setting.geometry(r).energy(rows).sum(), (r, rows))
    r, rows = r.detach(), rows.detach()
    assert float(force.sum(0).abs().max() / force.abs().max()) < 1e-12
    if name == "molecule":
        around = torch.linalg.cross(r, force) + torch.linalg.cross(rows[:, 1:], torque[:, 1:])
        assert float(around.sum(0).abs().max() / around.abs().max()) < 1e-12


def test_gradients_that_nobody_asked_for_are_not_made(generator):
    """Multipoles alone, positions alone, cell alone."""
    case = boundary_case("crystal", generator)
    operator = Coulomb()
    plan = operator.plan(case.cell, case.pbc, None, 4)
    everything = [x.clone().requires_grad_() for x in (case.positions, case.cell, case.rows)]
    energy = operator.prepare(*everything[:2], plan=plan).energy(everything[2]).sum()
    want = torch.autograd.grad(energy, everything)
    for i in range(3):
        inputs = [
            x.clone().requires_grad_(i == j) for j, x in enumerate((case.positions, case.cell, case.rows))
        ]
        energy = operator.prepare(*inputs[:2], plan=plan).energy(inputs[2]).sum()
        (gradient,) = torch.autograd.grad(energy, inputs[i])
        assert_close(gradient, want[i])
