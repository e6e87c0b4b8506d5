"""Spherical harmonics: both paths against angles and e3nn, with derivatives."""

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_close

import scfmlip_kernels
from kernels.problems import DTYPES, PATHS, derivatives, submodule
from scfmlip_kernels import spherical_harmonics
from scfmlip_kernels.spherical_harmonics.reference import spherical_harmonics_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("l_max", "n"), [(0, 5), (1, 5), (2, 5), (3, 129), (6, 5), (3, 0)])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, l_max, n, dtype, generator, device):
    vectors = torch.randn(n, 3, generator=generator, dtype=F64)
    given = vectors.to("cpu" if path == "cpu" else device, dtype).requires_grad_()
    value = spherical_harmonics(given, l_max)
    assert value.dtype == dtype
    order = 2 if l_max < 6 else 1
    got = [value, *derivatives(value, (given,), order)]
    vectors = given.detach().to(F64).requires_grad_()
    value = spherical_harmonics_reference(vectors, l_max)
    for a, b in zip(got, [value, *derivatives(value, (vectors,), order)], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_as_e3nn(path, generator, device):
    pytest.importorskip("mace")
    import mace  # noqa: F401  (before e3nn)
    from e3nn import o3

    vectors = torch.randn(20, 3, generator=generator, dtype=F64).to("cpu" if path == "cpu" else device)
    want = o3.spherical_harmonics(list(range(5)), vectors, True, "component")
    assert_close(spherical_harmonics(vectors, 4), want)


@pytest.mark.parametrize("path", PATHS)
def test_vectors_of_length_zero_and_along_the_axes(path, device):
    vectors = torch.cat((torch.zeros(1, 3), torch.eye(3), -torch.eye(3))).to(F64)
    vectors = vectors.to("cpu" if path == "cpu" else device).requires_grad_()
    value = spherical_harmonics(vectors, 3)
    assert value[0].tolist() == [1.0] + [0.0] * 15
    (slope,) = torch.autograd.grad(value.sum(), vectors)
    assert slope[0].tolist() == [0.0] * 3
    assert_close((value[1:, 1:4] ** 2).sum(1), torch.full((6,), 3.0, dtype=F64))
    # the sum of squares of each l is 2 l + 1 in any direction
    assert_close((value[1:, 9:] ** 2).sum(1), torch.full((6,), 7.0, dtype=F64))


@pytest.mark.parametrize("l_max", [0, 1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_training_step(path, l_max, generator, device):
    """Second derivatives in the gradient alone, on a GPU by a kernel; all of them, and third ones."""
    vectors = torch.randn(5, 3, generator=generator, dtype=F64)
    vectors[2] = 0.0  # no direction: the harmonics of l > 0 are constant there
    weight = torch.randn(5, (l_max + 1) ** 2, generator=generator, dtype=F64)

    def slopes(function, where):
        leaf, factor = (t.to(where, copy=True).requires_grad_() for t in (vectors, weight))
        (first,) = torch.autograd.grad(function(leaf, l_max), leaf, factor, create_graph=True)
        (alone,) = torch.autograd.grad(first.square().sum(), factor, retain_graph=True)
        second = torch.autograd.grad(first.pow(3).sum(), (leaf, factor), create_graph=True)
        third = torch.autograd.grad(sum(t.square().sum() for t in second), (leaf, factor))
        return [first, alone, *second, *third]

    with scfmlip_kernels.backend("cpu"):
        formulas = slopes(_formulas, "cpu")
    for a, b in zip(slopes(spherical_harmonics, "cpu" if path == "cpu" else device), formulas, strict=True):
        assert_close(a, b)


def _formulas(vectors, l_max):
    return submodule("spherical_harmonics.polynomials").harmonics_plain(vectors, l_max)


def test_gradcheck(generator):
    vectors = torch.randn(4, 3, generator=generator, dtype=F64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda v: spherical_harmonics(v, 3), (vectors,))
    assert torch.autograd.gradcheck(
        lambda v: spherical_harmonics(v, 3), (vectors,), check_forward_ad=True, check_backward_ad=False
    )


def test_transforms(generator):
    vectors = torch.randn(4, 3, generator=generator, dtype=F64)

    def energy(v):
        return (spherical_harmonics(v, 2) ** 3).sum()

    leaf = vectors.clone().requires_grad_()
    (want,) = torch.autograd.grad(energy(leaf), leaf)
    assert_close(torch.func.grad(energy)(vectors), want)
    assert_close(torch.func.hessian(energy)(vectors), torch.autograd.functional.hessian(energy, vectors))


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    for dtype in DTYPES:
        vectors = torch.randn(5, 3, generator=generator, dtype=F64).to(dtype).requires_grad_()
        torch.library.opcheck(torch.ops.scfmlip.spherical_harmonics.default, (vectors, 2))
        grad = torch.randn(5, 9, generator=generator, dtype=F64).to(dtype)
        torch.library.opcheck(
            torch.ops.scfmlip.spherical_harmonics_backward.default, (vectors.detach(), grad, 2)
        )


def test_compiles_once(generator):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda v: spherical_harmonics(v, 2), fullgraph=True, dynamic=True, backend=counter
    )
    for n in (7, 9, 14):
        vectors = torch.randn(n, 3, generator=generator, dtype=F64, requires_grad=True)
        got = derivatives(function(vectors), (vectors,), 1)
        for a, b in zip(got, derivatives(spherical_harmonics(vectors, 2), (vectors,), 1), strict=True):
            assert_close(a, b)
    assert counter.frame_count == 1


def test_refuses():
    with pytest.raises(TypeError, match="float32 or float64"):
        spherical_harmonics(torch.zeros(2, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"vectors must be \[n, 3\]"):
        spherical_harmonics(torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="at least 0"):
        spherical_harmonics(torch.zeros(2, 3), -1)
