"""Results kept by the identity of their tensors."""

import gc

import torch

from scfmlip_kernels.identity import ByIdentity


def counting():
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    return made, make


def test_made_once_for_the_same_tensors_and_key():
    kept, (made, make) = ByIdentity(2), counting()
    x, y = torch.ones(3), torch.ones(3)
    assert kept.get((x, y), "a", make) == kept.get((x, y), "a", make) == 0
    assert kept.get((y, x), "a", make) == 1  # equal values, other tensors
    assert kept.get((x, y), "b", make) == 2  # the first one had to go
    assert kept.get((x, y), "a", make) == 3
    assert len(made) == 4


def test_made_again_after_writing():
    kept, (_, make) = ByIdentity(2), counting()
    x = torch.ones(3)
    assert kept.get((x,), None, make) == 0
    x[:1].zero_()  # through a view, too
    assert kept.get((x,), None, make) == 1
    assert kept.get((x,), None, make) == 1


def test_gone_with_its_tensors():
    kept, (_, make) = ByIdentity(2), counting()
    x = torch.ones(3)
    kept.get((x,), None, make)
    del x
    gc.collect()
    assert not kept._memory.entries


def test_nothing_is_kept_where_it_must_be_made_again():
    kept, (made, make) = ByIdentity(2), counting()
    with torch.inference_mode():
        x = torch.ones(3)
        kept.get((x,), None, make)
        kept.get((x,), None, make)
    assert made == [0, 1]
    torch.func.vmap(lambda t: t + kept.get((t,), None, make))(torch.ones(3))
    assert not hasattr(kept._memory, "entries") or not kept._memory.entries


def test_graphs_and_no_graphs_are_told_apart():
    kept, x = ByIdentity(2), torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert not kept.get((x,), None, lambda: 2 * x).requires_grad
    assert kept.get((x,), None, lambda: 2 * x).requires_grad
