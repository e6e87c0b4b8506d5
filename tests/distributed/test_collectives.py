"""Communication between ranks, and what autograd knows of it: two orders, an empty rank."""

import re
from pathlib import Path

import pytest
import torch

from distributed.ranks import run_ranks
from scfmlip.distributed import SingleProcess

SCRIPT = Path(__file__).with_name("collectives_on_ranks.py")


def check(n, kind, *which):
    # ranks may write into each other's lines
    said = re.findall(r"rank \d+ of \d+ is content", run_ranks(n, SCRIPT, kind, *which).stdout)
    assert sorted(said) == [f"rank {r} of {n} is content" for r in range(n)]


def test_two_ranks_by_mpi():
    check(2, "mpi")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "kind"), [(1, "mpi"), (2, "mpi"), (3, "mpi"), (4, "mpi"), (2, "gloo"), (3, "gloo")]
)
def test_more_ranks(n, kind):
    """Every boundary and method."""
    check(n, kind, "all")


def test_one_process_needs_nobody():
    alone = SingleProcess()
    values = torch.arange(3)
    assert torch.equal(alone.all_reduce(values, "max"), values)
    assert torch.equal(alone.exchange(values, [3], [3]), values)
    assert alone.traffic.reductions == alone.traffic.messages == 0
    with pytest.raises(ValueError, match="'sum' or 'max'"):
        alone.all_reduce(values, "mean")  # type: ignore[arg-type]
