"""CUDA graphs where there is no CUDA, and for models that are not captured: clear errors."""

import pytest
import torch
from mace_torch.mace_models import mace_model
from models.cases import make_model

import scfmlip
from scfmlip.md.config import MdConfig
from scfmlip.md.run import make_calculator
from scfmlip.models import save

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_CUDA
def test_without_cuda():
    model = mace_model()
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        scfmlip.accelerate(model, cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        scfmlip.ase.Calculator(model, cuda_graph=True)


@NO_CUDA
def test_models_of_our_own_without_cuda():
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        scfmlip.ase.Calculator(make_model("qeq"), cuda_graph=True)


@NO_CUDA
def test_dynamics_without_cuda(tmp_path):
    save(make_model("qeq"), tmp_path / "model.pt")
    config = MdConfig("start.xyz", str(tmp_path / "model.pt"), 1, device="cpu", cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device"):
        make_calculator(config)


def test_models_that_are_not_captured():
    with pytest.raises(ValueError, match="is for models that are accelerated"):
        scfmlip.ase.Calculator(mace_model(), accelerate=False, cuda_graph=True)
