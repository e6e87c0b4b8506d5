"""Bessel functions with a cutoff: both paths against plain formulas and mace-torch, with derivatives."""

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives
from scfmlip_kernels import radial_basis
from scfmlip_kernels.radial_basis.reference import radial_basis_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def problem(generator, n=9, n_basis=5, p=6, dtype=F64, device="cpu"):
    """Lengths on both sides of the cutoff 3.5, frequencies, and the numbers."""
    x = 0.5 + 4 * torch.rand(n, 1, generator=generator, dtype=F64)
    y = x + 0.3 * torch.rand(n, 1, generator=generator, dtype=F64)
    w = torch.arange(1, n_basis + 1, dtype=F64) * torch.pi / 3.5
    numbers = (torch.tensor(0.7), torch.tensor(3.5))
    x, y, w, scale, reach = (t.to(device, dtype) for t in (x, y, w, *numbers))
    return x, y, w, scale, reach, torch.tensor(p, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("n", "n_basis", "p"), [(9, 5, 6), (130, 8, 5), (0, 5, 6), (9, 1, 1)])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n, n_basis, p, separate, dtype, generator, device):
    given = problem(generator, n, n_basis, p, dtype, "cpu" if path == "cpu" else device)
    x, y, w, scale, reach, power = given
    leaves = (x.requires_grad_(), y.requires_grad_(), w.requires_grad_())
    value = radial_basis(x, w, scale, reach, power, y, separate)
    assert value.dtype == dtype
    got = [value, *derivatives(value, leaves, 2)]
    x, y, w = leaves = tuple(t.detach().to(F64).requires_grad_() for t in leaves)
    value = radial_basis_reference(x, w, float(scale), float(reach), p, y, separate)
    for a, b in zip(got, [value, *derivatives(value, leaves, 2)], strict=True):
        # phases of up to 8 pi are rounded before their sine is taken
        assert_close(a, b, 1e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize("path", PATHS)
def test_first_derivatives_without_more(path, generator, device):
    """The kernel of the derivative, which backward passes that stop there run."""
    for separate in (False, True):
        x, _, w, scale, reach, p = problem(generator, device="cpu" if path == "cpu" else device)
        x.requires_grad_()
        value = radial_basis(x, w, scale, reach, p, separate=separate)
        grad = torch.randn(value.shape, generator=generator, dtype=F64).to(value.device)
        (slope,) = torch.autograd.grad(value, x, grad)
        value = radial_basis_reference(x, w, float(scale), float(reach), 6, separate=separate)
        (want,) = torch.autograd.grad(value, x, grad)
        assert_close(slope, want)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_training_step(path, same, separate, generator, device):
    """Second derivatives in the gradient alone, on a GPU by a kernel; all of them, and third ones."""
    x, y, w, scale, reach, p = problem(generator)
    weight = torch.randn(9, 5 + separate, generator=generator, dtype=F64)

    def slopes(run, where):
        leaves = [t.to(where, copy=True).requires_grad_() for t in ((x,) if same else (x, y))]
        factor = weight.to(where, copy=True).requires_grad_()
        more = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        found = []
        for wanted in (leaves, leaves[:1], leaves[-1:]):
            first = torch.autograd.grad(run(leaves[0], leaves[-1]), wanted, factor, **more)
            found += torch.autograd.grad(sum(t.square().sum() for t in first), factor, **more)
            second = torch.autograd.grad(sum(t.pow(3).sum() for t in first), (*leaves, factor), **more)
            found += [*first, *second]
            found += torch.autograd.grad(sum(t.square().sum() for t in second), leaves, **more)
        return found

    want = slopes(
        lambda a, b: radial_basis_reference(a, w, float(scale), float(reach), 6, b, separate), "cpu"
    )
    place = "cpu" if path == "cpu" else device
    rest = [t.to(place) for t in (w, scale, reach, p)]
    got = slopes(lambda a, b: radial_basis(a, *rest, b, separate), place)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-11)  # powers of the cutoff, three times differentiated


def test_as_mace(generator):
    pytest.importorskip("mace")
    from mace.modules.blocks import RadialEmbeddingBlock

    torch.set_default_dtype(F64)
    block = RadialEmbeddingBlock(r_max=3.5, num_bessel=8, num_polynomial_cutoff=5)
    x, *_ = problem(generator)
    want, _ = block(x, None, None, None)
    bessel = block.bessel_fn
    got = radial_basis(x, bessel.bessel_weights, bessel.prefactor, bessel.r_max, block.cutoff_fn.p)
    assert_close(got, want)


def test_gradcheck(generator):
    x, y, w, scale, reach, p = problem(generator, 4, 3)
    leaves = (x.requires_grad_(), w.requires_grad_(), y.requires_grad_())
    for separate in (False, True):

        def run(x, w, y, separate=separate):
            return radial_basis(x, w, scale, reach, p, y, separate)

        assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, leaves)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    x, y, *rest = problem(generator)
    x.requires_grad_()
    torch.library.opcheck(torch.ops.scfmlip.radial_basis.default, (x, y, *rest, True))
    grad = torch.randn(9, 6, generator=generator, dtype=F64)
    torch.library.opcheck(torch.ops.scfmlip.radial_basis_backward.default, (x.detach(), y, *rest, grad, True))


def test_compiles_once(generator):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(radial_basis, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for n in (7, 9, 14):
        x, _, *rest = problem(generator, n)
        x.requires_grad_()
        got = derivatives(function(x, *rest), (x,), 1)
        for a, b in zip(got, derivatives(radial_basis(x, *rest), (x,), 1), strict=True):
            assert_close(a, b)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1]  # the compiler may start the first one twice


def test_refuses(generator):
    x, _, w, scale, reach, p = problem(generator)
    with pytest.raises(ValueError, match=r"x must be \[n, 1\]"):
        radial_basis(x[:, 0], w, scale, reach, p)
    with pytest.raises(ValueError, match="scale must be one number"):
        radial_basis(x, w, torch.ones(2, dtype=F64), reach, p)
    with pytest.raises(TypeError, match="p must be an integer"):
        radial_basis(x, w, scale, reach, p.double())
    with pytest.raises(NotImplementedError, match="detach them"):
        radial_basis(x, w, scale.requires_grad_(), reach, p).sum().backward()
