"""Captured steps of models with charges: solves repeat decisions, and nothing inside waits."""

import copy
import warnings

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import held, simulated_gpu, to_gpu
from simulated_gpu.test_step_graphs import agree, moved

pytest.importorskip("mace")
from scfmlip import decisions
from scfmlip.mace_torch.step_graphs import StepGraphs
from scfmlip.segments import Segments

F64 = torch.float64
SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
pytestmark = [SOME, pytest.mark.interpreter]


@pytest.fixture(autouse=True)
def _gpu():
    torch.set_default_dtype(F64)
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield log


@pytest.fixture(name="log")
def _log(_gpu):
    return _gpu


def charge_model(name, where="periodic"):
    """A model of a charge rule, and a batch."""
    from models.cases import SYSTEMS, batch, make_model

    model = make_model(name)
    return model, batch(model, [SYSTEMS[where]()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "latent"])
def test_models_whose_charges_do_not_iterate(log, name):
    model, batch = charge_model(name)
    plain = to_gpu(model)
    graphed = scfmlip.accelerate(plain, cuda_graph=True)
    options = {"compute_stress": True, "compute_potential": name == "local"}
    for step, by in enumerate((0.0, 0.03)):
        given = to_gpu(moved(batch, by, step))
        agree(graphed(dict(given), **options), plain(dict(given), **options))
    graphs = graphed._graphs
    assert graphs.captures == 1
    given = to_gpu({**batch, "cell": batch["cell"] * 1.02})  # another plan
    agree(graphed(dict(given), **options), plain(dict(given), **options))
    assert graphs.captures == 2
    log.clear()
    graphed(to_gpu({**moved(batch, 0.01), "cell": batch["cell"] * 1.02}), **options)
    assert log.n_waits <= 2, log.report()  # plan and checks
    assert log.launches < 100, log.report()
    assert graphed(dict(given), training=True)["energy"].requires_grad
    assert graphs.captures == 2
    broken = to_gpu(moved(batch, 0.0))
    held(broken["positions"])[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        graphed(broken, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("qeq", "periodic"),
        ("qeq_widths", "open"),
        ("affine", "periodic"),
        ("many_body", "periodic"),
        ("passive", "slab"),
        ("convex", "periodic"),
        ("recursion", "periodic"),
    ],
)
def test_rules_that_solve(log, name, where):
    model, batch = charge_model(name, where)
    plain = to_gpu(model)
    graphed = scfmlip.accelerate(plain, cuda_graph=True)
    options = {"compute_stress": where == "periodic"}
    for step, by in enumerate((0.0, 0.03, 0.05)):
        given = to_gpu(moved(batch, by, step))
        got, want = graphed(dict(given), **options), plain(dict(given), **options)
        agree(got, want)
        if "scf_status" in want:
            assert not held(got["scf_status"]).any()
            assert held(got["scf_iterations"]).tolist() == held(want["scf_iterations"]).tolist()
    assert graphed._graphs.captures == 1
    log.clear()
    graphed(to_gpu(moved(batch, 0.01)), **options)
    assert log.n_waits <= 2, log.report()  # plan; checks and what solves would have decided
    assert log.launches < 100, log.report()


@pytest.mark.slow
def test_conjugate_gradients_and_first_guesses(log, monkeypatch):
    from scfmlip.scf import equilibration

    monkeypatch.setattr(equilibration, "DENSE_UP_TO", 0)
    monkeypatch.setattr(equilibration, "solves_small", lambda *given: False)
    model, batch = charge_model("qeq")
    plain = to_gpu(model)
    graphed = scfmlip.accelerate(plain, cuda_graph=True)
    start = None
    for step, by in enumerate((0.0, 0.03, 0.05)):
        given = to_gpu(moved(batch, by, step))
        options = {} if start is None else {"initial_density": start}
        got, want = graphed(dict(given), **options), plain(dict(given), **options)
        agree(got, want)
        start = want["density_coefficients"].detach()
    assert graphed._graphs.captures == 2  # one without a first guess
    log.clear()
    graphed(to_gpu(moved(batch, 0.01)), initial_density=start)
    assert log.n_waits <= 2, log.report()


@pytest.mark.slow
def test_too_few_iterations_make_a_plain_step(monkeypatch):
    model, batch = charge_model("affine")
    plain = to_gpu(model)
    graphed = scfmlip.accelerate(plain, cuda_graph=True)
    monkeypatch.setattr(decisions, "_MORE", -2)
    for step in range(2):
        given = to_gpu(moved(batch, 0.03, step))
        agree(graphed(dict(given)), plain(dict(given)))
    assert graphed._graphs.captures == 2
    monkeypatch.setattr(decisions, "_MORE", 1)
    for step in range(2):
        given = to_gpu(moved(batch, 0.03, step))
        agree(graphed(dict(given)), plain(dict(given)))
    assert graphed._graphs.captures == 3


class Solving(torch.nn.Module):
    """A small map with a fixed point, in the place of a model."""

    r_max = 5.0

    def __init__(self):
        super().__init__()
        self.graphs = StepGraphs()

    def capture_token(self, batch):
        return ()

    def plain(self, batch):
        x = batch["positions"].detach().requires_grad_()
        solution = scfmlip.fixed_point(
            lambda s, x, slope: torch.tanh(slope * s + x),
            torch.zeros_like(x),
            (x, batch["slope"]),
            batch_idx=Segments(batch["ptr"], batch["batch"]),
            solver="newton",
            tolerance=1e-12,
        )
        energy = (solution.state**2).sum()
        (slope,) = torch.autograd.grad(energy, x)
        return {"energy": energy[None], "forces": -slope}

    def forward(self, batch):
        return self.graphs.step(self, self.plain, batch, {})


def solving_batch(x, slope=0.1):
    one = torch.zeros(1, dtype=torch.int64)
    edges = {"edge_index": torch.zeros(2, 1, dtype=torch.int64), "shifts": torch.zeros(1, 3)}
    more = {"unit_shifts": torch.zeros(1, 3), "cell": 9 * torch.eye(3), "ptr": torch.tensor([0, len(x)])}
    more["slope"] = torch.tensor(slope)
    return to_gpu({"positions": x, "batch": one.expand(len(x)), **edges, **more})


def test_a_captured_solve(log):
    model = Solving()
    x = 0.3 * torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    for step in range(2):
        batch = solving_batch(x + 0.01 * step)
        agree(model(batch), model.plain(batch))
    assert model.graphs.captures == 1
    log.clear()
    model(batch)
    assert log.n_waits == 1, log.report()
    assert model.graphs._graphs[0].taken.taken
    # a harder map: more steps than were captured, which is found out, and then captured
    batch = solving_batch(x, -4.0)
    for _ in range(2):
        agree(model(batch), model.plain(batch))
    assert model.graphs.captures == 2
    log.clear()
    agree(model(solving_batch(x)), model.plain(solving_batch(x)))
    assert model.graphs.captures == 2
    broken = solving_batch(torch.full_like(x, torch.nan))
    with pytest.raises((ValueError, scfmlip.ConvergenceError)):
        model(broken)


@pytest.mark.slow
def test_inside_late_checks_a_captured_solve_looks(log):
    model = Solving()
    x = 0.3 * torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    model(solving_batch(x))
    with scfmlip.late_checks():
        batch = solving_batch(x, -4.0)
        agree(model(batch), model.plain(batch))


def test_a_model_that_looks_is_refused():
    model = Solving()
    plain = model.plain
    model.plain = lambda batch: plain(batch) if float(batch["positions"].sum()) else {}
    with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph .*leave cuda_graph=True out"):
        model(solving_batch(torch.ones(1, 3, dtype=F64)))


def test_copies_and_constraints_have_graphs_of_their_own():
    local, _ = charge_model("local")
    graphed = scfmlip.accelerate(local, cuda_graph=True)
    assert graphed.captures_steps
    assert not local.captures_steps
    assert copy.deepcopy(graphed)._graphs is not graphed._graphs
    other = next(kind for kind in type(local.rule).constraints if kind != local.config.constraint)
    assert graphed.with_constraint(other)._graphs is not graphed._graphs
