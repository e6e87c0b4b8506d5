"""What operators compute in a backward pass."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scfmlip_kernels import indexed_linear


class Called(TorchDispatchMode):
    """Names of the operators called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_forces_compute_no_gradients_of_weights():
    """``autograd.grad`` in the positions alone: what the engine will not use is not computed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    index = torch.tensor([0, 1, 1, 0, 1])

    def loss():
        # leaves are told apart from what the engine will not run only behind another operation
        return (indexed_linear(2 * x, 3 * weights, index) ** 2).sum()

    both = torch.autograd.grad(loss(), (x, weights))
    for wanted, name in ((0, "scfmlip::indexed_linear_weights"), (1, "scfmlip::indexed_linear")):
        out = loss()
        with Called() as called:
            (one,) = torch.autograd.grad(out, (x, weights)[wanted])
        assert torch.equal(one, both[wanted])
        assert name not in called.names
        assert any(n.startswith("scfmlip::indexed_linear") for n in called.names)


def test_parameters_themselves_are_not_wanted_for_forces():
    weights = torch.nn.Parameter(torch.ones(1, 2, 2))
    x, index = torch.ones(3, 1, 2, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    out = indexed_linear(x * 2, weights, index).sum()
    with Called() as called:
        torch.autograd.grad(out, x, retain_graph=True)
    assert "scfmlip::indexed_linear_weights" not in called.names
    out.backward()
    assert weights.grad is not None
    assert weights.grad.flatten().tolist() == [6.0] * 4
