"""ASE's calculator on a simulated GPU: the CPU's numbers, and three waits a step."""

from unittest import mock

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.as_gpu import module_to
from simulated_gpu.device import simulated_gpu

pytest.importorskip("mace")
from mace_torch.mace_models import frames, mace_model
from models.cases import SYSTEMS, make_model

SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
pytestmark = [SOME, pytest.mark.interpreter, pytest.mark.slow]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["qeq", "mace"])
def test_steps(name, graphs):
    torch.set_default_dtype(torch.float64)
    if name == "mace":
        model, atoms = mace_model("RealAgnosticResidualInteractionBlock", correlation=2), frames(2)[0]
    else:
        model, atoms = make_model(name), SYSTEMS["periodic"]()
    info, places, want = dict(atoms.info), [], []
    plain = scfmlip.ase.Calculator(model, device="cpu")
    for step in range(4):
        atoms.rattle(0.02, seed=step)
        places.append(atoms.positions.copy())
        atoms.calc = plain
        want.append((atoms.get_potential_energy(), torch.tensor(atoms.get_forces())))
    with (
        scfmlip_kernels.backend("auto"),
        simulated_gpu() as log,
        mock.patch.object(torch.nn.Module, "to", module_to),
    ):
        atoms = atoms.copy()
        atoms.info = info
        atoms.calc = scfmlip.ase.Calculator(model, device="cuda", cuda_graph=graphs)
        for positions, (energy, forces) in zip(places, want, strict=True):
            atoms.positions = positions
            log.clear()
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-8)
            torch.testing.assert_close(torch.tensor(atoms.get_forces()), forces, rtol=0, atol=1e-7)
        if graphs or name == "mace":
            assert log.n_waits <= 3, log.report()
        if graphs:
            assert log.launches < 60, log.report()
