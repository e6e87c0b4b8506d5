"""Many tensors at once to a GPU and back: the same values, shapes and dtypes, one copy each way."""

import contextlib

import numpy as np
import pytest
import torch

from scfmlip.transfers import to_device, to_host

SOME = {
    "positions": torch.arange(6, dtype=torch.float64).view(2, 3),
    "edge_index": torch.tensor([[0, 1, 1], [1, 0, 1]]),
    "pbc": torch.tensor([[True, False, True]]),
    "weight": torch.tensor(2.5),
    "narrow": torch.arange(5, dtype=torch.float32)[::2],
    "turned": torch.arange(6.0).view(2, 3).T,
    "nothing": torch.zeros(0, 3),
    "half": torch.ones(3, dtype=torch.float16),
    "name": "a batch",
    "absent": None,
}


@contextlib.contextmanager
def gpu():
    """The simulated one, and its name; a real one where there is one."""
    if torch.cuda.is_available():
        yield None
        return
    from simulated_gpu.device import simulated_gpu

    with simulated_gpu() as log:
        yield log


def same(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert torch.equal(got, want)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_and_back(device):
    with gpu() if device == "cuda" else contextlib.nullcontext() as log:
        there = to_device(SOME, device)
        assert list(there) == list(SOME)
        assert there["name"] == "a batch"
        assert there["absent"] is None
        tensors = {k: v for k, v in there.items() if isinstance(v, torch.Tensor)}
        assert all(v.device.type == device for v in tensors.values())
        if log is not None:
            assert not log.n_waits, log.report()
        back = to_host(there)
        if log is not None:
            assert log.n_waits == 1, log.report()
    assert set(back) == set(tensors)
    for name, value in back.items():
        same(value, SOME[name])
        np.testing.assert_array_equal(value.numpy(), SOME[name].numpy())


def test_what_was_moved_is_no_part_of_what_it_was():
    with gpu():
        given = {k: v.clone() for k, v in SOME.items() if isinstance(v, torch.Tensor)}
        there = to_device(given, "cuda")
        there["positions"].add_(1.0)
        there["positions"].requires_grad_()
        there["turned"], there["one"] = there["positions"].T, there["positions"][:1, 1]
        back = to_host(there)
    same(back["turned"], SOME["positions"].T + 1.0)
    same(back["one"], SOME["positions"][:1, 1] + 1.0)
    same(given["positions"], SOME["positions"])
    same(back["positions"], SOME["positions"] + 1.0)
    same(back["edge_index"], SOME["edge_index"])


def test_graphs_stay_behind_and_single_tensors_go_alone():
    x = torch.ones(2, requires_grad=True)
    assert not to_host({"energy": (2 * x).sum(), "other": x})["energy"].requires_grad
    assert to_host({"error": "none"}) == {}
    with gpu():
        one = to_device({"positions": torch.zeros(1, 3)}, "cuda")
        assert one["positions"].device.type == "cuda"
        assert list(to_host(one)) == ["positions"]


def test_every_tensor_starts_where_kernels_expect_it():
    with gpu():
        there = to_device(SOME, "cuda")
        starts = [
            v.storage_offset() * v.element_size() for v in there.values() if isinstance(v, torch.Tensor)
        ]
    assert all(start % 16 == 0 for start in starts)
    assert len(set(starts)) >= len(starts) - 1  # an empty one takes no room
