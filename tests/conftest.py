"""Shared fixtures. The interpreter is chosen before triton is imported, so this file comes first."""

import os
import signal

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest

import scfmlip_kernels

# the tests' tensors are small: a second thread costs more than it brings
torch.set_num_threads(1)
# a run in the background ignores Ctrl-C, and so would every command that a test starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _backend(request):
    """The CPU path on CPU tensors, except in tests marked `interpreter`, which run the kernels."""
    name = "triton" if request.node.get_closest_marker("interpreter") else "auto"
    with scfmlip_kernels.backend(name if name == "triton" or DEVICE == "cuda" else "cpu"):
        yield


@pytest.fixture(autouse=True)
def _default_dtype():
    """Some packages under test change the default dtype: give every test the same start."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def empty_is_nan(monkeypatch):
    """Deterministic mode fills new memory with NaN, so that whatever a path forgets to write shows."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or matrix products on a GPU raise
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20260917)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and DEVICE != "cuda":
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
