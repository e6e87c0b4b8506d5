"""
Whole models down their CUDA branch on a simulated GPU: the CPU path's numbers, launches and waits.

``counts.json`` holds launches and waits of a second call, energies, forces and stress, on the smallest
systems; they may only fall. ``python -m simulated_gpu.test_simulated_gpu``, from ``tests/``, writes it anew,
or the cases that are named behind it.
``python -m simulated_gpu.test_simulated_gpu --by-line mace "coulomb slab"`` shows which lines launch how
often, those of backward passes at the line of their forward operation. Set ``TRITON_INTERPRET=1`` for both.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import CUDA, OnGpu, held, simulated_gpu, to_gpu

F64 = torch.float64
COUNTS = Path(__file__).with_name("counts.json")
SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
pytestmark = [SOME, pytest.mark.interpreter]


def coulomb(where, **options):
    """A function of nothing that evaluates the operator, all arguments on the device of ``place``."""

    def make(place):
        generator = torch.Generator().manual_seed(0)
        cell = 6 * torch.eye(3, dtype=F64) + 0.2 * torch.randn(3, 3, generator=generator, dtype=F64)
        frac = torch.rand(6, 3, generator=generator, dtype=F64)
        rows = torch.randn(6, 4, generator=generator, dtype=F64)
        pbc = {"crystal": [True] * 3, "slab": [True, True, False], "molecule": [False] * 3}[where]
        operator = scfmlip.Coulomb(sigma=1.5, feature_widths=(1.5, 3.0), validate=False, **options)
        leaves = [place(t).requires_grad_() for t in (frac @ cell, cell, rows)]
        plan = operator.plan(leaves[1], torch.tensor(pbc), None, 6, leaves[0].device, leaves[0])

        def call():
            geometry = operator.prepare(leaves[0], leaves[1], plan=plan)
            energy, features = geometry.energy(leaves[2]), geometry.features(leaves[2])
            loss = energy.sum() + (features**2).sum()
            slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
            return [energy, features, *slopes]

        return call

    return make


def mace(place):
    """MACE, accelerated: energy, forces and stress."""
    pytest.importorskip("mace")
    from mace_torch.mace_models import frames, mace_batch, mace_model

    torch.set_default_dtype(F64)
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    batch = place(mace_batch(frames(2)[:1], model))
    model = place(scfmlip.accelerate(model))
    return lambda: outputs(model(dict(batch), compute_stress=True))


def polar(where):
    """PolarMACE, accelerated."""

    def make(place):
        pytest.importorskip("mace")
        from mace_torch.polar_models import batch_of, polar_model, random_frames

        torch.set_default_dtype(F64)
        pbc = {"crystal": (True,) * 3, "molecule": (False,) * 3}[where]
        model = polar_model(hidden_irreps="4x0e + 4x1o", correlation=2, max_ell=1)
        batch = place(batch_of(random_frames([pbc], n_atoms=4, box=6.0), model))
        model = place(scfmlip.accelerate(model))
        return lambda: outputs(model(dict(batch), compute_stress=where == "crystal"))

    return make


# released models: layers, angular momenta and correlation as they have them, with four channels
SHAPES = {
    "mace-small": {"hidden": "4x0e"},
    "mace-medium": {"hidden": "4x0e + 4x1o"},
    "polar-s": {"hidden_irreps": "4x0e", "num_interactions": 1},
    "polar-m": {"hidden_irreps": "4x0e + 4x1o", "edge_irreps": "4x0e + 4x1o"},
}


def released(name):
    """Energy and forces of a crystal: launches hang on a model's shape, not on its channels."""

    def make(place):
        pytest.importorskip("mace")
        torch.set_default_dtype(F64)
        shape = {**SHAPES[name], "max_ell": 3, "correlation": 3}
        if name.startswith("mace"):
            from mace_torch.mace_models import frames, mace_batch, mace_model

            model = mace_model("RealAgnosticResidualInteractionBlock", **shape)
            batch = place(mace_batch(frames(2)[:1], model))
        else:
            from mace_torch.polar_models import batch_of, polar_model, random_frames

            model = polar_model(**shape)
            batch = place(batch_of(random_frames([(True,) * 3], n_atoms=4, box=6.0), model))
        model = place(scfmlip.accelerate(model))
        return lambda: outputs(model(dict(batch)))

    return make


def rule(name, where):
    """A model of a charge rule."""

    def make(place):
        pytest.importorskip("mace")
        from models.cases import SYSTEMS, batch, make_model

        model = make_model(name)
        given = place(batch(model, [SYSTEMS[where]()]))
        model = place(model)
        return lambda: outputs(model(dict(given), compute_stress=where != "open"))

    return make


def training(make_case):
    """A training step: derivatives of a loss of energies and forces in all parameters."""

    def make(place):
        model, given = make_case(place)

        def call():
            out = model(dict(given), training=True, compute_stress=True)
            loss = sum(out[name].square().sum() for name in ("energy", "forces", "stress"))
            weights = [p for p in model.parameters() if p.requires_grad]
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
            return [slope for slope in slopes if slope is not None]

        return call

    return make


def open_training(place):
    """A training step of dipoles in an open box: a loss of energy, field features and forces."""
    generator = torch.Generator().manual_seed(0)
    positions = place(5.0 * torch.rand(6, 3, generator=generator, dtype=F64)).requires_grad_()
    weights = place(torch.randn(6, 4, generator=generator, dtype=F64)).requires_grad_()
    cell = place(torch.zeros(3, 3, dtype=F64))
    operator = scfmlip.Coulomb(sigma=1.5, feature_widths=(1.5, 3.0), validate=False)
    plan = operator.plan(cell, False, None, 6, positions.device, positions)

    def call():
        geometry = operator.prepare(positions, cell, plan=plan)
        rows = weights * (1 + positions.square().sum(1, keepdim=True))
        energy = geometry.energy(rows).sum() + geometry.features(rows).square().sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
        loss = energy + forces.square().sum()
        return [energy, forces, *torch.autograd.grad(loss, (weights, positions))]

    return call


def rule_case(name, where):
    """The model of a rule, and a batch."""

    def make(place):
        pytest.importorskip("mace")
        from models.cases import SYSTEMS, batch, make_model

        model = make_model(name)
        given = batch(model, [SYSTEMS[where]()])
        return place(model), place(given)

    return make


def mace_case(place):
    """An accelerated MACE, and a batch."""
    pytest.importorskip("mace")
    from mace_torch.mace_models import frames, mace_batch, mace_model

    torch.set_default_dtype(F64)
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    given = mace_batch(frames(2)[:1], model)
    return place(scfmlip.accelerate(model)), place(given)


def polar_case(place):
    """An accelerated PolarMACE, and a batch."""
    pytest.importorskip("mace")
    from mace_torch.polar_models import batch_of, polar_model, random_frames

    torch.set_default_dtype(F64)
    model = polar_model(hidden_irreps="4x0e + 4x1o", correlation=2, max_ell=1)
    given = batch_of(random_frames([(True,) * 3], n_atoms=4, box=6.0), model)
    return place(scfmlip.accelerate(model)), place(given)


def charges(place):
    """Equilibration of charges in one launch, and derivatives of its energy."""
    generator = torch.Generator().manual_seed(0)
    cell = place(7.0 * torch.eye(3, dtype=F64))
    positions = place(7.0 * torch.rand(6, 3, generator=generator, dtype=F64)).requires_grad_()
    chi, hardness = (place(offset + torch.rand(6, generator=generator, dtype=F64)) for offset in (4.0, 8.0))
    operator = scfmlip.Coulomb(l_max=0, sigma=1.0, validate=False)
    plan = operator.plan(cell, True, None, 6, positions.device, positions)

    def call():
        geometry = operator.prepare(positions, cell, plan=plan)
        solution = scfmlip.charge_equilibration(geometry, chi, hardness, 0.5, tolerance=1e-12)
        (slope,) = torch.autograd.grad(solution.energy.sum(), positions)
        return [solution.energy, solution.charges, slope]

    return call


def outputs(out):
    names = ("energy", "forces", "stress", "charges")
    return [out[name] for name in names if out.get(name) is not None]


QUICK = {
    "coulomb crystal": coulomb("crystal"),
    "coulomb slab": coulomb("slab"),
    "coulomb molecule": coulomb("molecule"),
    "coulomb mesh": coulomb("crystal", method="mesh", tolerance=1e-3),
    "rule local": rule("local", "periodic"),
    "charges": charges,
    "training of an open box": open_training,
}
SLOW = {
    "coulomb molecule, mesh": coulomb("molecule", method="mesh", tolerance=1e-3),
    "mace": mace,
    "polar crystal": polar("crystal"),
    "polar molecule": polar("molecule"),
    **{name: released(name) for name in SHAPES},
    "rule qeq": rule("qeq", "periodic"),
    "rule qeq_widths": rule("qeq_widths", "open"),
    "rule affine": rule("affine", "periodic"),
    "rule many_body": rule("many_body", "periodic"),
    "rule passive": rule("passive", "slab"),
    "rule convex": rule("convex", "periodic"),
    "training local": training(rule_case("local", "periodic")),
    "training mace": training(mace_case),
    "training polar": training(polar_case),
}
ALL = {**QUICK, **SLOW}
# waits that are left: what is zero has to stay zero
NO_WAITS = (
    "coulomb crystal",
    "coulomb slab",
    "coulomb molecule",
    "coulomb mesh",
    "coulomb molecule, mesh",
    "mace",
    "mace-small",
    "mace-medium",
    "training mace",
    "training of an open box",
)


def run(make):
    """Largest relative difference from the CPU path, and the log of a second call."""
    with scfmlip_kernels.backend("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = [t.detach() for t in make(lambda x: x)()]
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = make(to_gpu)
        call()
        log.clear()
        got = call()
        assert all(isinstance(t, OnGpu) for t in got)
    differences = [
        float((held(a.detach()) - b).norm() / b.norm().clamp(min=1e-12))
        for a, b in zip(got, want, strict=True)
    ]
    return max(differences), log


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_numbers_launches_and_waits(case):
    difference, log = run(ALL[case])
    # of sums in another order; solves end within their tolerance
    assert difference < (1e-7 if case.startswith("rule") else 1e-11), log.report()
    launches, waits = json.loads(COUNTS.read_text())[case]
    assert log.launches <= launches, log.report()
    assert log.n_waits <= waits, log.report()
    assert case not in NO_WAITS or not log.n_waits, log.report()


@pytest.mark.parametrize("compat", [None, "graph_longrange"])
def test_a_batch_that_was_never_seen_makes_nobody_wait(compat):
    """Tables of sums over pairs are made with the plan; molecules of other sizes then cost no wait at all."""
    operator = scfmlip.Coulomb(sigma=1.5, feature_widths=(1.5,), validate=False, compat=compat)
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log:
        for sizes in ([2, 1], [3, 2, 1], [1, 4]):  # the first makes what a model keeps: constants of widths
            system = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            generator = torch.Generator().manual_seed(len(system))
            positions = to_gpu(5.0 * torch.rand(len(system), 3, generator=generator, dtype=F64))
            rows = to_gpu(torch.randn(len(system), 4, generator=generator, dtype=F64))
            cell, index = to_gpu(torch.zeros(len(sizes), 3, 3, dtype=F64)), to_gpu(system)
            plan = operator.plan(cell, False, index, len(system), positions.device, positions)
            positions.requires_grad_()
            log.clear()
            geometry = operator.prepare(positions, cell, False, index, plan=plan)
            energy = geometry.energy(rows).sum() + geometry.features(rows).square().sum()
            (forces,) = torch.autograd.grad(energy, positions, create_graph=compat is None)
            if compat is None:
                torch.autograd.grad(forces.square().sum(), positions)
            waits = log.n_waits
    assert not waits, log.report()


def test_charge_solves_of_a_batch_that_was_never_seen():
    """The kernel's tables come with the plan: the solver is made and solves without a wait."""
    operator = scfmlip.Coulomb(l_max=0, sigma=1.0, validate=False)
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log, torch.no_grad():
        for sizes in ([2, 1], [3, 2, 1], [1, 4]):
            n, index = sum(sizes), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            generator = torch.Generator().manual_seed(n)
            positions = to_gpu(7.0 * torch.rand(n, 3, generator=generator, dtype=F64))
            chi = to_gpu(torch.rand(n, generator=generator, dtype=F64))
            cell, index = to_gpu(7.0 * torch.eye(3, dtype=F64).expand(len(sizes), 3, 3)), to_gpu(index)
            plan = operator.plan(cell, True, index, n, positions.device, positions)
            geometry = operator.prepare(positions, cell, True, index, plan=plan)
            log.clear()
            scfmlip.charge_equilibration(geometry, chi, chi + 8.0, 0.0)
            waits = {place for _, place in log.waits if place.startswith("kernels/")}
            assert log.kernels["_charge_solve_kernel"] == 1
    assert not waits, log.report()


def test_it_is_as_strict_as_a_gpu():
    """Tensors of two devices in one operation, pointers of the CPU, numpy."""
    with simulated_gpu() as log:
        x = torch.ones(3, device=CUDA)
        assert isinstance(x, OnGpu)
        assert isinstance(torch.ones(3).to("cuda") * 2, OnGpu)
        assert log.waits  # for the copy
        with pytest.raises(RuntimeError, match=r"tensors on cuda:0 and on the CPU"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            x.numpy()
        log.clear()
        assert float(x.sum()) == 3.0
        assert x[[0, 2]].tolist() == [1.0, 1.0]
        kinds = {kind for kind, _ in log.waits}
        assert kinds == {"_local_scalar_dense", "list as an index", "tolist"}
        y = x.clone().requires_grad_()
        (y**2).sum().backward()
        assert held(y.grad).tolist() == [2.0] * 3


def test_conjugates():
    """Of complex numbers, in a product and behind autograd."""
    draw = {"generator": torch.Generator().manual_seed(0), "dtype": torch.complex128}
    a, b = torch.randn(3, 3, **draw), torch.randn(3, 3, **draw)

    def slopes(place):
        x, y = place(a).requires_grad_(), place(b)
        product = (x.conj() * y + 1j * x) @ y.conj().T
        return torch.view_as_real(torch.autograd.grad(product.real.square().sum(), x)[0])

    with simulated_gpu():
        got = held(slopes(to_gpu))
    torch.testing.assert_close(got, slopes(lambda x: x), rtol=1e-13, atol=1e-13)


def test_shapes_that_change_in_place():
    """Products with vectors make them, and their gradients."""
    with simulated_gpu():
        matrix = to_gpu(torch.eye(3, dtype=torch.float64)).requires_grad_()
        vector = to_gpu(torch.arange(3, dtype=torch.float64)).requires_grad_()
        product = vector @ matrix
        energy = product @ matrix @ product
        assert (product.shape, energy.shape) == ((3,), ())
        energy.backward()
        assert (matrix.grad.shape, vector.grad.shape) == ((3, 3), (3,))
        row = to_gpu(torch.zeros(1, 3)).squeeze_(0)
        assert row.shape == held(row).shape == (3,)


def test_kernels_run_where_their_tensors_are(monkeypatch):
    """Triton launches on the current device, which need not be the tensors'."""
    visited = []

    @contextlib.contextmanager
    def visit(device):
        visited.append(device)
        yield

    with simulated_gpu():
        values = to_gpu(torch.ones(4, 2, dtype=F64))
        ptr, index = to_gpu(torch.tensor([0, 1, 4])), to_gpu(torch.tensor([0, 1, 1, 1]))
        monkeypatch.setattr(torch.cuda, "device", visit)
        sums = scfmlip_kernels.segment_sum(values, ptr, index)
        assert not visited
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert torch.equal(held(scfmlip_kernels.segment_sum(values, ptr, index)), held(sums))
        assert visited == [CUDA]


def test_copies_count_where_views_would_do():
    with simulated_gpu() as log, torch._C._AutoDispatchBelowAutograd():  # as inside operators
        x = OnGpu(torch.ones(2, 3))
        log.clear()
        x.contiguous(), x.T, x.reshape(6), x[:1].T.contiguous()
        assert not log.launches, log.report()
        assert held(x.T.contiguous()).is_contiguous()
        assert log.launches == 1, log.report()


@pytest.mark.parametrize(
    "flags",
    [
        {},
        pytest.param({"compute_stress": True}, marks=pytest.mark.slow),
        pytest.param({"compute_edge_forces": True, "compute_virials": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_outputs_of_mace_and_gradients_of_its_parameters(flags):
    """Several systems in a batch, one of them a molecule; second derivatives, as training takes them."""
    pytest.importorskip("mace")
    from mace_torch.mace_models import frames, mace_batch, mace_model

    torch.set_default_dtype(F64)
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)

    def call(place):
        batch = place(mace_batch(frames(3, 5), model))
        fast = place(scfmlip.accelerate(model))
        out = fast(dict(batch), training=True, **flags)
        names = ("energy", "node_energy", "forces", "virials", "stress", "edge_forces", "node_feats")
        found = [out[name] for name in names if out[name] is not None]
        loss = sum(((t - 0.1) ** 2).sum() for t in found)
        parameters = [p for p in fast.parameters() if p.requires_grad]
        return [*found, *torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)]

    with scfmlip_kernels.backend("cpu"):
        want = [t.detach() for t in call(lambda x: x)]
    with scfmlip_kernels.backend("auto"), simulated_gpu():
        got = [held(t.detach()) for t in call(to_gpu)]
    for a, b in zip(got, want, strict=True):
        assert float((a - b).norm()) <= 1e-11 * max(float(b.norm()), 1e-6)


def by_line(case):
    """Launches of a case by line, as text."""
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        _, log = run(ALL[case])
    return f"{case}: {log.launches} launches, {sum(log.kernels.values())} of Triton\n{log.by_line()}"


def test_launches_of_backward_passes_are_told_by_their_forward_line():
    text = by_line("coulomb molecule")
    assert "scfmlip/electrostatics/openspace.py" in text
    assert ".py backward" in text


def write_counts(names):
    found = json.loads(COUNTS.read_text())
    for name in names or ALL:
        difference, log = run(ALL[name])
        found[name] = [log.launches, log.n_waits]
        print(f"{name}: {difference:.1e}, {log.launches} launches, {log.n_waits} waits", flush=True)
        found = {case: found[case] for case in ALL if case in found}
        lines = [f" {json.dumps(name)}: {json.dumps(count)}" for name, count in found.items()]
        COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if "--by-line" in sys.argv:
        for case in sys.argv[sys.argv.index("--by-line") + 1 :]:
            print(by_line(case), flush=True)
    else:
        write_counts(sys.argv[1:])
