"""Captured steps on a simulated GPU: nothing inside waits, and replays have the numbers of plain steps."""

import copy
import pickle
import warnings

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import CUDA, Graph, OnGpu, held, simulated_gpu, to_gpu

pytest.importorskip("mace")
from mace_torch.mace_models import frames, mace_batch, mace_model
from mace_torch.polar_models import batch_of, polar_model, random_frames

from scfmlip.mace_torch.step_graphs import StepGraphs, _bucket, _fits

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


def moved(batch, by, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shift = by * torch.randn(batch["positions"].shape, generator=generator, dtype=F64)
    return {**batch, "positions": batch["positions"] + shift}


def agree(got, want):
    for name in ("energy", "forces", "stress", "charges"):
        if want.get(name) is not None:
            assert isinstance(got[name], OnGpu)
            torch.testing.assert_close(held(got[name]), held(want[name].detach()), rtol=1e-10, atol=1e-10)


def with_graphs(model):
    """The plain and the captured model on the GPU; the first stands for a model made there."""
    plain = to_gpu(scfmlip.accelerate(model))
    return plain, scfmlip.accelerate(plain, cuda_graph=True)


def fewer_edges(batch, n):
    """Without its last edges."""
    cut = {"edge_index": batch["edge_index"][:, :-n]}
    return {**batch, **cut, **{name: batch[name][:-n] for name in ("shifts", "unit_shifts")}}


def test_a_tape_repeats_what_it_has_seen():
    x = OnGpu(torch.tensor([1.0, 2.0]))
    graph = Graph()
    with torch.cuda.graph(graph):
        y = torch.zeros(2, device=CUDA)
        y += 3 * x
        z = y.view(1, 2).sum(1)
    x.copy_(OnGpu(torch.tensor([5.0, 6.0])))
    graph.replay()
    assert held(y).tolist() == [15.0, 18.0]
    assert held(z).tolist() == [33.0]


@pytest.mark.parametrize(
    "bad", [lambda x: float(x.sum()), lambda x: x[[0]], lambda x: x.cpu(), torch.nonzero]
)
def test_no_wait_in_a_captured_region(bad):
    x = OnGpu(torch.ones(2))
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        torch.cuda.graph(Graph()),
    ):
        bad(x)


@pytest.mark.slow
def test_mace(log):
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    plain, graphed = with_graphs(model)
    batch = mace_batch(frames(2)[:1], model)
    options = {"compute_stress": True}
    for step, by in enumerate((0.0, 0.02, 0.05)):
        given = to_gpu(moved(batch, by, step))
        agree(graphed(dict(given), **options), plain(dict(given), **options))
    graphs = graphed._scfmlip_graphs
    assert graphs.captures == 1
    # another number of edges in the same bucket, and cells that change with them
    for n in (1, 5, 2):
        given = to_gpu(fewer_edges(batch, n))
        given["cell"] = given["cell"] * 1.01
        agree(graphed(dict(given), **options), plain(dict(given), **options))
    assert graphs.captures == 1
    log.clear()
    graphed(to_gpu(moved(batch, 0.01)), **options)
    assert not log.n_waits, log.report()
    assert log.launches < 80, log.report()


@pytest.mark.slow
def test_other_shapes_options_and_weights():
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    plain, graphed = with_graphs(model)
    one, two = (to_gpu(mace_batch(frames(2)[:n], model)) for n in (1, 2))
    graphs = graphed._scfmlip_graphs
    for given in (one, two, one, two):
        agree(graphed(dict(given)), plain(dict(given)))
    assert graphs.captures == 2
    agree(graphed(dict(one), compute_stress=True), plain(dict(one), compute_stress=True))
    assert graphs.captures == 3
    with torch.no_grad():
        for weight in plain.parameters():
            weight.mul_(1.1)
    agree(graphed(dict(one)), plain(dict(one)))
    assert graphs.captures == 4
    out = graphed(dict(one), training=True)  # as usual, with a graph of autograd
    assert out["energy"].requires_grad
    assert graphs.captures == 4


@pytest.mark.slow
@pytest.mark.parametrize("where", ["crystal", "molecule"])
def test_polar(log, where):
    pbc = {"crystal": (True,) * 3, "molecule": (False,) * 3}[where]
    model = polar_model(hidden_irreps="4x0e + 4x1o", correlation=2, max_ell=1)
    plain, graphed = with_graphs(model)
    # this model is not smooth at the cutoff, which the comparison with a plain step finds out
    batch = batch_of(random_frames([pbc], n_atoms=4, box=6.0), model)
    options = {"compute_stress": where == "crystal"}
    for step, by in enumerate((0.0, 0.05)):
        given = to_gpu(moved(batch, by, step))
        agree(graphed(dict(given), **options), plain(dict(given), **options))
    graphs = graphed._scfmlip_graphs
    assert graphs.captures == 2  # one with padded edges, which is refused, and one without
    log.clear()
    graphed(to_gpu(moved(batch, 0.01)), **options)
    assert log.n_waits <= 2, log.report()  # plan and checks
    if where == "crystal":
        given = to_gpu({**batch, "cell": batch["cell"] * 1.02})
        agree(graphed(dict(given), **options), plain(dict(given), **options))
        assert graphs.captures == 3
    broken = to_gpu(moved(batch, 0.0))
    held(broken["positions"])[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        graphed(broken, **options)


def test_buckets():
    for n in (1, 63, 64, 1000, 123457):
        capacity = _bucket(n, True)
        assert n <= capacity
        assert _fits(capacity, n, True)
        assert not _fits(capacity, capacity + 1, True)
        assert _fits(n, n, False)
        assert not _fits(n + 1, n, False)
    assert not _fits(2000, 1000, True)


def test_graphs_are_no_part_of_a_model():
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    graphed = scfmlip.accelerate(model, cuda_graph=True)
    assert isinstance(copy.deepcopy(graphed)._scfmlip_graphs, StepGraphs)
    assert isinstance(pickle.loads(pickle.dumps(graphed._scfmlip_graphs)), StepGraphs)
    assert (
        scfmlip.restore(graphed)._scfmlip_graphs is None if hasattr(scfmlip.restore(graphed), "x") else True
    )
    assert not hasattr(scfmlip.restore(graphed), "_scfmlip_graphs")
    with pytest.raises(ValueError, match="its batch is on cpu"):
        graphed(mace_batch(frames(2)[:1], model))
    few = StepGraphs(2)
    assert few.most == 2


@pytest.mark.slow
def test_a_model_that_waits_is_refused():
    model = mace_model("RealAgnosticResidualInteractionBlock", correlation=2)
    _, graphed = with_graphs(model)
    graphed.interactions[0].register_forward_hook(lambda module, args, out: float(out[0].sum()) and None)
    with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph .*leave cuda_graph=True out"):
        graphed(to_gpu(mace_batch(frames(2)[:1], model)))


@pytest.mark.slow
def test_edges_beyond_the_cutoff_are_told():
    model = polar_model(hidden_irreps="4x0e + 4x1o", correlation=2, max_ell=1)
    _, graphed = with_graphs(model)
    batch = to_gpu(batch_of(random_frames([(True,) * 3], n_atoms=4, box=6.0), model))
    with pytest.warns(UserWarning, match="an edge beyond the cutoff changes the energy of this PolarMACE"):
        graphed(dict(batch), compute_force=False)
