"""Gates: both paths against formulas, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives
from scfmlip_kernels import Gate, gated
from scfmlip_kernels.gated.reference import gated_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
GATES = {
    "vectors": Gate(3, (0, 0, 0, 1, 1, 1), 2, "silu", "sigmoid", 1.7, 0.6),
    "mixed": Gate(40, (2, 0, 0, 2, 1, 2) * 20, 3, "sigmoid", "silu"),
    "scalars": Gate(5, scalar_factor=1.3),
    "gated alone": Gate(0, (0, 1), 2),
    "idle gate": Gate(1, (0,), 2),
}


def problem(gate, n, generator):
    """x, divisor, residual."""
    x, residual = (torch.randn(n, gate.n_in, generator=generator, dtype=F64) for _ in range(2))
    return x, 1 + torch.rand(n, 1, generator=generator, dtype=F64), residual


def run(function, gate, tensors, which):
    """With a divisor, a residual, both or neither."""
    divisor, residual = (t if use else None for t, use in zip(tensors[1:], which, strict=True))
    return function(tensors[0], gate, divisor, residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 21])
@pytest.mark.parametrize("which", [(True, True), (False, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, name, which, n, dtype, generator, device):
    gate = GATES[name]
    tensors = problem(gate, n, generator)
    where = "cpu" if path == "cpu" else device
    given = tuple(t.to(where, dtype).requires_grad_() for t in tensors)
    exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in given)
    used = (0, *(k + 1 for k in range(2) if which[k]))
    mine, theirs = (tuple(t[k] for k in used) for t in (given, exact))
    value, want = run(gated, gate, given, which), run(gated_reference, gate, exact, which)
    assert value.dtype == dtype
    assert value.shape == (n, gate.n_out)
    for a, b in zip(
        [value, *derivatives(value, mine, 2)], [want, *derivatives(want, theirs, 2)], strict=True
    ):
        assert_close(a, b, 1e-5 if dtype == torch.float32 else None)
    # first derivatives alone, by the kernel
    weight = torch.randn(n, gate.n_out, generator=generator, dtype=F64)
    again, want = run(gated, gate, given, which), run(gated_reference, gate, exact, which)
    slopes = torch.autograd.grad(again, mine, weight.to(again))
    for a, b in zip(slopes, torch.autograd.grad((want * weight).sum(), theirs), strict=True):
        assert_close(a, b, 1e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize("name", [n for n in GATES if n != "mixed"])
def test_gradcheck(name, generator):
    gate = GATES[name]
    given = tuple(t.requires_grad_() for t in problem(gate, 2, generator))
    assert torch.autograd.gradcheck(lambda *t: gated(t[0], gate, *t[1:]), given, check_forward_ad=True)
    run = lambda *t: gated(t[0], gate, *t[1:])  # noqa: E731
    assert torch.autograd.gradgradcheck(run, given, check_fwd_over_rev=True)
    assert torch.autograd.gradgradcheck(lambda x: gated(x, gate), given[:1], check_fwd_over_rev=True)


@pytest.mark.parametrize("which", [(True, True), (False, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("path", PATHS)
def test_training_step(path, name, which, generator, device):
    """Second derivatives alone, on a GPU by the kernel, and third ones; of every gradient and of some."""
    gate = GATES[name]
    tensors = problem(gate, 6, generator)
    weight = torch.randn(6, gate.n_out, generator=generator, dtype=F64)
    used = (0, *(k + 1 for k in range(2) if which[k]))

    def slopes(function, where):
        given = [t.to(where).requires_grad_() for t in tensors]
        leaves, found = [given[k] for k in used], []
        factor = weight.to(where).requires_grad_()
        for wanted in (leaves, leaves[:1], leaves[-1:]):
            value = run(function, gate, given, which)
            first = torch.autograd.grad(value, wanted, factor, create_graph=True)
            loss = sum(slope.square().sum() for slope in first)
            found += torch.autograd.grad(loss, [*leaves, factor], create_graph=len(wanted) == len(used))
        third = sum(bend.square().sum() for bend in found[: len(used) + 1])
        return [*found, *torch.autograd.grad(third, [*leaves, factor])]

    where = "cpu" if path == "cpu" else device
    for a, b in zip(slopes(gated, where), slopes(gated_reference, "cpu"), strict=True):
        assert_close(a, b)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    from scfmlip_kernels.registry import describe

    gate = GATES["vectors"]
    given = tuple(t.requires_grad_() for t in problem(gate, 2, generator))
    torch.library.opcheck(torch.ops.scfmlip.gated.default, (*given, describe(gate)))


def test_refuses():
    x = torch.ones(2, 11)
    with pytest.raises(ValueError, match=r"divisor must be \[2, 1\]"):
        gated(x, GATES["vectors"], torch.ones(2))
    with pytest.raises(ValueError, match="groups must be 0 to 0, got 0 to 1"):
        gated(x, GATES["vectors"]._replace(n_gates=1))
    with pytest.raises(ValueError, match="functions are silu and sigmoid, got 'tanh'"):
        gated(x, GATES["vectors"]._replace(gate="tanh"))
