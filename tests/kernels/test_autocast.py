"""Under autocast operators are on PyTorch's float32 list: low precision in, float32 out."""

import pytest
import torch
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.convolutions import plain_product
from kernels.test_torch_func import NAMES, operator
from scfmlip_kernels import (
    SymmetricPolynomial,
    channelwise_conv,
    indexed_linear,
    sort_edges,
    symmetric_contraction,
)

LOW = [torch.bfloat16, torch.float16]


def in_dtype(name, inputs, dtype):
    """Coordinates of the lattice operators stay in float64."""
    if name == "lattice_field":
        return inputs
    kept = {"structure_factor": 1}.get(name, 0)
    return [*inputs[:kept], *(x.to(dtype) for x in inputs[kept:])]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_raised(name, dtype, generator):
    """Values, and gradients in the inputs' own dtype, as float32 gives them."""
    function, inputs = operator(name, generator)
    low = [x.requires_grad_() for x in in_dtype(name, inputs, dtype)]
    full = [x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32) for x in low]
    full = [x.requires_grad_() for x in full]
    with torch.autocast("cpu", dtype=dtype):
        got = function(*low)
        first = torch.autograd.grad(got.square().sum(), low)
    want = function(*full)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    for a, b in zip(first, torch.autograd.grad(want.square().sum(), full), strict=True):
        assert_close(a, b.to(a.dtype), torch.finfo(dtype).eps)  # rounded to the dtype of the input


@pytest.mark.parametrize("name", NAMES)
def test_full_precision_stays(name, generator):
    """Products inside run in the dtype of the tensors, forwards, backwards and twice."""
    function, inputs = operator(name, generator)
    found = []
    for enabled in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = function(*leaves)
            first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([value, *first, *second])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_autocast_low_precision_is_refused(generator):
    x, w, index = torch.zeros(1, 1, 1).half(), torch.zeros(1, 1, 1).half(), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"x must be float32 or float64, got torch\.float16: convert it"):
        indexed_linear(x, w, index)


@pytest.fixture
def cuda_autocast():
    """float16 on a GPU; switched on by hand, because `torch.autocast` leaves it off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.usefixtures("cuda_autocast")
def test_cuda():
    """The dtypes on a GPU, from tensors without numbers; tensors on the CPU stay as they are."""
    product = plain_product((2, 1))
    with FakeTensorMode():

        def half(*shape):
            return torch.empty(*shape, device="cuda", dtype=torch.float16)

        sender, receiver, species = torch.zeros(3, 4, device="cuda", dtype=torch.int64)
        edges = sort_edges(sender, receiver, 4)
        x, y, w = half(4, product.x_dim), half(4, product.y_dim), half(4, product.weight_numel)
        polynomial = SymmetricPolynomial(2, 1, 1, (((0, 1), 0, 0, 1.0),))
        values = {
            "linear": indexed_linear(half(4, 1, 2), half(3, 2, 5), species),
            "mixed": indexed_linear(half(4, 1, 2).float(), half(3, 2, 5), species),
            "convolution": channelwise_conv(x, y, w, edges, product),
            "contraction": symmetric_contraction(half(4, 3, 2), half(2, 1, 3), species, polynomial),
        }
        assert {name: value.dtype for name, value in values.items()} == dict.fromkeys(values, torch.float32)
        with pytest.raises(TypeError, match="x must be float32 or float64"):
            indexed_linear(half(4, 1, 2).cpu(), half(3, 2, 5).cpu(), species.cpu())
