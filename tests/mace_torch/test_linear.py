"""e3nn's gates as descriptions: the same numbers, and None for what the kernel does not know."""

import pytest
import torch
from tolerances import assert_close

pytest.importorskip("mace")
from e3nn import nn as e3nn_nn

from scfmlip.mace_torch.accelerate import accelerate_blocks, restore
from scfmlip.mace_torch.linear import FastPlainGate, _plain_gate
from scfmlip_kernels import gated

F64 = torch.float64
SILU, SIGMOID, TANH = torch.nn.functional.silu, torch.sigmoid, torch.tanh


def gate(scalars, acts, gates, gate_acts, gated_irreps):
    return e3nn_nn.Gate(scalars, acts, gates, gate_acts, gated_irreps).double()


KNOWN = {
    "scalars": ("5x0e", [SILU], "", [], ""),
    "vectors": ("5x0e", [SILU], "3x0e", [SIGMOID], "3x1o"),
    "quadrupoles": ("4x0e", [SILU], "3x0e + 2x0e", [SIGMOID, SIGMOID], "3x1o + 2x2e"),
    "the other way round": ("4x0e", [SIGMOID], "3x0e", [SILU], "3x1o"),
}
OTHERS = {
    "tanh": ("5x0e", [TANH], "3x0e", [SIGMOID], "3x1o"),
    "gates of two kinds": ("4x0e", [SILU], "3x0e + 2x0e", [SIGMOID, SILU], "3x1o + 2x2e"),
    "another order": ("4x0e", [SILU], "3x0e + 2x0e", [SIGMOID, SIGMOID], "2x2e + 3x1o"),
    "no function": ("4x0e", [None], "3x0e", [SIGMOID], "3x1o"),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_gates(kind, generator):
    module = gate(*KNOWN[kind])
    found = _plain_gate(module)
    assert found is not None
    x = torch.randn(7, module.irreps_in.dim, generator=generator, dtype=F64, requires_grad=True)
    want, got = module(x), gated(x, found)
    assert_close(got, want, 1e-12)
    slopes = [torch.autograd.grad((y**2).sum(), x)[0] for y in (got, want)]
    assert_close(slopes[0], slopes[1], 1e-12)


@pytest.mark.parametrize("kind", OTHERS)
def test_gates_that_stay(kind):
    module = gate(*OTHERS[kind])
    assert _plain_gate(module) is None
    assert type(accelerate_blocks(module)) is type(module)


def test_swapped_and_back():
    module = gate(*KNOWN["vectors"])
    fast = accelerate_blocks(torch.nn.Sequential(module))
    assert type(fast[0]) is FastPlainGate
    assert type(restore(fast)[0]) is e3nn_nn.Gate
    assert type(fast[0]).__name__ == "Gate"
