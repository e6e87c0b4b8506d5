"""Sums over the segments of a ragged batch, and their adjoint."""

import pytest
import torch
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.problems import DTYPES, pointers, scattered, system_of
from scfmlip_kernels import segment_expand, segment_sum

F64 = torch.float64
SIZES = [[3, 0, 5, 1], [0, 4, 0], [7], [0]]
SHAPES = [(), (1,), (3,), (2, 4), (3, 3), (0,)]


def rows(sizes, shape, generator, dtype=F64):
    return torch.randn(sum(sizes), *shape, generator=generator, dtype=F64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sum(sizes, shape, dtype, generator, device):
    values = rows(sizes, shape, generator, dtype)
    got = segment_sum(values.to(device), pointers(sizes).to(device), system_of(sizes).to(device))
    want = torch.stack([part.double().sum(0) for part in values.split(sizes)])
    assert got.dtype == dtype
    assert_close(got, want)


@pytest.mark.parametrize("shape", [(), (3, 3)])
@pytest.mark.parametrize("sizes", [[0, 0], []])
def test_no_rows(sizes, shape, device):
    """Empty segments are 0, also when all of them are."""
    tables = (pointers(sizes).to(device), system_of(sizes).to(device))
    got = segment_sum(torch.zeros(0, *shape, device=device), *tables)
    assert got.shape == (len(sizes), *shape)
    assert not got.any()
    assert segment_expand(got, *tables).shape == (0, *shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_expand(sizes, shape, generator, device):
    values = torch.randn(len(sizes), *shape, generator=generator, dtype=F64)
    got = segment_expand(values.to(device), pointers(sizes).to(device), system_of(sizes).to(device))
    assert torch.equal(got.cpu(), values[system_of(sizes)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_sums_every_time(dtype, generator, device):
    """The reason for these operators: no atomics, the same bits in every run and any batch."""
    sizes = [1000, 3, 2000]
    values = rows(sizes, (2,), generator, dtype).to(device)
    tables = (pointers(sizes).to(device), system_of(sizes).to(device))
    first = segment_sum(values, *tables)
    for _ in range(5):
        assert torch.equal(segment_sum(values, *tables), first)


def test_long_float32_sums(generator):
    """A million rows: the error stays that of a few roundings of the partial sums."""
    sizes = [1_000_000, 10]
    values = torch.rand(sum(sizes), generator=generator)
    got = segment_sum(values, pointers(sizes), system_of(sizes))
    want = segment_sum(values.double(), pointers(sizes), system_of(sizes))
    assert_close(got[1:], want[1:])
    assert abs(float(got[0] / want[0]) - 1) < 1e-4  # plain running sum: float32 keeps 4 digits of 5e5


@pytest.mark.parametrize("sizes", [[2, 0, 3], [4]])
def test_adjoint(sizes, generator):
    tables = (pointers(sizes), system_of(sizes))
    x, y = rows(sizes, (2,), generator), torch.randn(len(sizes), 2, generator=generator, dtype=F64)
    left = (segment_sum(x, *tables) * y).sum()
    right = (x * segment_expand(y, *tables)).sum()
    assert_close(left, right)


@pytest.mark.parametrize("sizes", [[2, 0, 3], [4]])
@pytest.mark.parametrize("function", [segment_sum, segment_expand])
def test_gradcheck(function, sizes, generator):
    tables = (pointers(sizes), system_of(sizes))
    values = rows(sizes if function is segment_sum else [1] * len(sizes), (2,), generator)
    values.requires_grad_()

    def squared(x):
        return function(x, *tables) ** 2

    assert torch.autograd.gradcheck(squared, (values,))
    assert torch.autograd.gradgradcheck(squared, (values,))


def layouts(values):
    """Contiguous, with gaps, and transposed as `torch.linalg.inv` returns its result."""
    yield values
    yield scattered(values)
    yield values.mT.contiguous().mT


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, generator):
    sizes = [2, 0, 3]
    tables = (pointers(sizes), system_of(sizes))
    for op, n in (("segment_sum", sizes), ("segment_expand", [1, 1, 1])):
        values = rows(n, (3, 3), generator, dtype).requires_grad_()
        torch.library.opcheck(getattr(torch.ops.scfmlip, op).default, (values, *tables))


@pytest.mark.parametrize("name", ["segment_sum", "segment_expand"])
def test_fake_tensors_have_the_real_strides(name, generator):
    """Inductor believes the fake implementation and refuses a result laid out differently."""
    sizes = [2, 0, 3]
    tables = (pointers(sizes), system_of(sizes))
    op = getattr(torch.ops.scfmlip, name)
    for x in layouts(rows(sizes if name == "segment_sum" else [1, 1, 1], (3, 3), generator)):
        real = op(x, *tables)
        with FakeTensorMode() as mode:
            fake = op(*(mode.from_tensor(t) for t in (x, *tables)))
        assert fake.shape == real.shape
        assert fake.stride() == real.stride()


@pytest.mark.parametrize("function", [segment_sum, segment_expand])
def test_not_contiguous(function, generator):
    sizes = [2, 0, 3]
    tables = (pointers(sizes), system_of(sizes))
    x = rows(sizes if function is segment_sum else [1, 1, 1], (3, 3), generator)
    results = []
    for layout in layouts(x):
        leaf = layout.requires_grad_()
        value = function(leaf, *tables)
        results.append((value, *torch.autograd.grad(value.sum(), leaf)))
    for value, gradient in results[1:]:
        assert_close(value, results[0][0])
        assert_close(gradient, results[0][1])
