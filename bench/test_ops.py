"""
A regression guard of our own operators' speed: `pytest bench` (not part of `make test`).

Compare runs with pytest-benchmark: `pytest bench --benchmark-autosave`, later `--benchmark-compare`.
"""

import pytest
import torch

from .problems import make_problem
from .providers import providers
from .registry import CASES, Size
from .verify import make_call

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = (Size(1000), Size(20000)) if DEVICE.type == "cuda" else (Size(100), Size(1000))
WORK = [
    (name, mode, size)
    for name, case in CASES.items()
    for mode in case.modes
    for size in ((Size(100, 16),) if name == "polar_batch" else SIZES)
    if not (case.open_boundary and size.atoms > 1000)
]


@pytest.fixture(autouse=True)
def _one_thread():
    """On a busy machine several threads wait for each other: times would say nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "mode", "size"), WORK, ids=[f"{n}-{m}-{s}" for n, m, s in WORK])
def test_op(benchmark, name, mode, size):
    problem = make_problem(CASES[name], size, torch.float32, DEVICE)
    call = make_call(problem, providers()["scfmlip"].build(problem), mode)

    def finished():
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=5, warmup_rounds=2)
