"""Charge equilibration inside a training step: compiled, and in two processes that share gradients."""

import os

import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerances import assert_close

from scfmlip import Coulomb, charge_equilibration

F64 = torch.float64
CELL = 6.0 * torch.eye(3, dtype=F64)


class Model(torch.nn.Module):
    """Electronegativity and hardness from distances to a fixed point; the rest is charge equilibration."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8, dtype=F64), torch.nn.SiLU(), torch.nn.Linear(8, 2, dtype=F64)
        )
        for parameter in self.net.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64)
        self.coulomb = Coulomb(l_max=0, sigma=1.0, kspace_cutoff=3.5, validate=False)

    def forward(self, positions: torch.Tensor, plan) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.net(torch.sin(positions))
        geometry = self.coulomb.prepare(positions, CELL, plan=plan)
        hardness = 1 + raw[:, 1] ** 2
        solution = charge_equilibration(geometry, raw[:, 0], hardness, tolerance=1e-12)
        return solution.energy.sum() + (raw**2).sum(), solution.charges


def frames(count):
    generator = torch.Generator().manual_seed(5)
    return [6 * torch.rand(8, 3, generator=generator, dtype=F64) for _ in range(count)]


def loss_of(model, positions, plan, forces):
    """Energy, charges, and with ``forces`` a loss of these too."""
    positions = positions.clone().requires_grad_(forces)
    energy, charges = model(positions, plan)
    loss = energy**2 + (charges**2).sum()
    if forces:
        (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
        loss = loss + (slope**2).sum()
    return loss


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


# what dynamo itself does where a graph goes on after a break
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("backend", "forces"), [("aot_eager", False), ("eager", True)])
def test_a_compiled_step(backend, forces):
    """
    The same gradients, compiled once for all frames.

    Forces in a loss need a second derivative, which AOT autograd does not have: dynamo alone then.
    """
    model = Model()
    batch = frames(3)
    plan = model.coulomb.plan(CELL, None, None, 8)
    want = [gradients(model, loss_of(model, r, plan, forces)) for r in batch]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter)
    for r, expected in zip(batch, want, strict=True):
        for a, b in zip(gradients(model, loss_of(compiled, r, plan, forces)), expected, strict=True):
            assert_close(a, b, 1e-9)
    graphs = counter.frame_count
    gradients(model, loss_of(compiled, batch[0] + 0.01, plan, forces))
    assert counter.frame_count == graphs
    torch._dynamo.reset()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(Model())
    plan = model.module.coulomb.plan(CELL, None, None, 8)
    loss = loss_of(model, frames(2)[rank], plan, True)
    loss.backward()
    torch.save([p.grad for p in model.parameters()], os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    """A force loss under DistributedDataParallel: the mean of the gradients of both, on either side."""
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    model = Model()
    plan = model.coulomb.plan(CELL, None, None, 8)
    each = [gradients(model, loss_of(model, r, plan, True)) for r in frames(2)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for got, a, b in zip(found, *each, strict=True):
            assert_close(got, 0.5 * (a + b), 1e-9)
