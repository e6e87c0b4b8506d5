"""The Coulomb operator in a captured graph: nothing inside waits, and a replay at other places is right."""

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import Graph, held, simulated_gpu, to_gpu

F64 = torch.float64
SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
pytestmark = [SOME, pytest.mark.interpreter]


def step(operator, positions, cell, plan, rows):
    """Energy, forces and features."""
    geometry = operator.prepare(positions, cell, plan=plan)
    energy = geometry.energy(rows)
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -gradient, geometry.features(rows).detach()


@pytest.mark.parametrize("method", ["direct", "mesh"])
@pytest.mark.parametrize(
    "where", ["crystal", *(pytest.param(w, marks=pytest.mark.slow) for w in ("slab", "molecule"))]
)
def test_a_replay_at_other_places(where, method):
    generator = torch.Generator().manual_seed(0)
    cell = 6 * torch.eye(3, dtype=F64) + 0.2 * torch.randn(3, 3, generator=generator, dtype=F64)
    places = [torch.rand(5, 3, generator=generator, dtype=F64) @ cell for _ in range(2)]
    places[1] = 0.9 * places[1]  # as large as the plan allows
    rows = torch.randn(5, 4, generator=generator, dtype=F64)
    pbc = torch.tensor({"crystal": [True] * 3, "slab": [True, True, False], "molecule": [False] * 3}[where])
    operator = scfmlip.Coulomb(
        sigma=1.5, feature_widths=(1.5, 3.0), method=method, tolerance=1e-3, validate=False
    )
    largest = torch.cat(places).aminmax(dim=0)
    with scfmlip_kernels.backend("cpu"):
        want = []
        for r in places:
            plan = operator.plan(cell, pbc, None, 5, positions=torch.stack((*largest, *r[:3])))
            want.append(step(operator, r.clone().requires_grad_(), cell, plan, rows))
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log:
        box, multipoles = to_gpu(cell), to_gpu(rows)
        positions = to_gpu(places[0]).requires_grad_()
        frame = to_gpu(torch.stack((*largest, *places[0][:3])))
        plan = operator.plan(box, pbc, None, 5, positions.device, frame)
        step(operator, positions, box, plan, multipoles)
        graph = Graph()
        log.clear()
        with torch.cuda.graph(graph):
            got = step(operator, positions, box, plan, multipoles)
        assert not log.n_waits, log.report()
        for r, values in ((places[0], want[0]), (places[1], want[1]), (places[0], want[0])):
            with torch.no_grad():
                positions.copy_(to_gpu(r))
            graph.replay()
            for a, b in zip(got, values, strict=True):
                torch.testing.assert_close(held(a), b, rtol=1e-9, atol=1e-10)
