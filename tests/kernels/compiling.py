"""What versions of PyTorch can compile."""

import pytest
import torch

# numbers of an operator's description become symbols there, where its text has to be known
symbolic_descriptions = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.12",
    reason="torch 2.11 does not compile descriptions with dynamic=True; without dynamic it does",
)
