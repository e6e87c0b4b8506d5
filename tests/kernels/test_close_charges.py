"""Closed charges: both paths against one system after another, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, pointers, system_of
from scfmlip_kernels import close_charges
from scfmlip_kernels.close_charges.reference import close_charges_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def problem(sizes, m, updated, generator):
    n = sum(sizes)
    charges, update = (
        torch.randn(n, k, generator=generator, dtype=F64) for k in (2 * m, 2 * m * updated + 2)
    )
    # of one sign, so that nothing is divided by almost 0
    update[:, -2:] = 0.5 + update[:, -2:].abs()
    targets = torch.randn(len(sizes), 2, generator=generator, dtype=F64)
    return charges, update, targets, pointers(sizes), system_of(sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "m"), [([5], 4), ([0], 1), ([3, 0, 300], 1), ([1, 2], 9)], ids=str)
@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, updated, sizes, m, dtype, generator, device):
    *tensors, ptr, index = problem(sizes, m, updated, generator)
    where = "cpu" if path == "cpu" else device
    given = tuple(t.to(where, dtype).requires_grad_() for t in tensors)
    exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in given)
    value = close_charges(*given, ptr.to(where), index.to(where))
    want = close_charges_reference(*exact, index, len(sizes))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11  # sums of both signs
    assert value.dtype == dtype
    for a, b in zip(
        [value, *derivatives(value, given, 2)], [want, *derivatives(want, exact, 2)], strict=True
    ):
        assert_close(a, b, tolerance)
    # first derivatives alone, by the kernel
    weight = torch.randn(value.shape, generator=generator, dtype=F64)
    again = close_charges(*given, ptr.to(where), index.to(where))
    want = close_charges_reference(*exact, index, len(sizes))
    slopes = torch.autograd.grad(again, given, weight.to(again))
    for a, b in zip(slopes, torch.autograd.grad((want * weight).sum(), exact), strict=True):
        assert_close(a, b, tolerance)
    if sum(sizes):
        totals = torch.zeros(len(sizes), 2, dtype=F64).index_add(
            0, index, value.detach().cpu().double()[:, ::m]
        )
        filled = torch.tensor(sizes) > 0
        assert_close(totals[filled], exact[2].detach()[filled], tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_weights_that_add_up_to_nothing(path, generator, device):
    """They are used as they are, and have derivatives."""
    *tensors, ptr, index = problem([2], 1, False, generator)
    where = "cpu" if path == "cpu" else device
    tensors[1] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    given = tuple(t.to(where).requires_grad_() for t in tensors)
    exact = tuple(t.clone().requires_grad_() for t in tensors)
    value = close_charges(*given, ptr.to(where), index.to(where))
    want = close_charges_reference(*exact, index, 1)
    assert_close(value, want)
    for a, b in zip(
        torch.autograd.grad(value[0, 0], given), torch.autograd.grad(want[0, 0], exact), strict=True
    ):
        assert_close(a, b)


@pytest.mark.parametrize("updated", [False, True])
def test_gradcheck(updated, generator):
    *tensors, ptr, index = problem([2, 3], 2, updated, generator)
    given = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(lambda *t: close_charges(*t, ptr, index), given, check_forward_ad=True)
    run = lambda *t: close_charges(*t, ptr, index)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, given, check_fwd_over_rev=True)


@pytest.mark.parametrize("nothing", [False, True])
@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_training_step(path, updated, nothing, generator, device):
    """Second derivatives alone, on a GPU by the kernel, and third ones; weights that add up to 0."""
    *tensors, ptr, index = problem([2, 0, 3], 2, updated, generator)
    if nothing:
        tensors[1][:2, -1] = torch.tensor([1.0, -1.0])
    weight = torch.randn(tensors[0].shape, generator=generator, dtype=F64)

    def slopes(function, where, *place):
        given, found = [t.to(where).requires_grad_() for t in tensors], []
        factor = weight.to(where).requires_grad_()
        for wanted in (given, given[:1], given[1:2], given[2:]):
            first = torch.autograd.grad(function(*given, *place), wanted, factor, create_graph=True)
            loss = sum(slope.square().sum() for slope in first) + function(*given, *place).square().sum()
            found += torch.autograd.grad(loss, [*given, factor], create_graph=len(wanted) == 3)
        third = sum(bend.square().sum() for bend in found[:4])
        return [*found, *torch.autograd.grad(third, [*given, factor])]

    where = "cpu" if path == "cpu" else device
    want = slopes(close_charges_reference, "cpu", index, 3)
    for a, b in zip(slopes(close_charges, where, ptr.to(where), index.to(where)), want, strict=True):
        assert_close(a, b, 1e-11)  # sums of both signs


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    *tensors, ptr, index = problem([2, 3], 2, True, generator)
    given = tuple(t.requires_grad_() for t in tensors)
    torch.library.opcheck(torch.ops.scfmlip.close_charges.default, (*given, ptr, index))


def test_refuses():
    ptr, index, ones = torch.tensor([0, 2]), torch.tensor([0, 0]), torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"update must be \[2, 2\] or \[2, 4\], got \[2, 3\]"):
        close_charges(ones, torch.ones(2, 3), ones[:1], ptr, index)
    with pytest.raises(ValueError, match="m columns for each of two spins, got 3"):
        close_charges(torch.ones(2, 3), ones, ones[:1], ptr, index)
    with pytest.raises(ValueError, match="index names systems 0 to 1, there are 1"):
        close_charges(ones, ones, ones[:1], ptr, torch.tensor([0, 1]))
