"""Networks of normalised layers: both paths against formulas, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives
from scfmlip_kernels import NormNetwork, norm_network
from scfmlip_kernels.norm_network.reference import norm_network_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
# sums of both signs, and deviations in denominators
WIDER = {torch.float32: 1e-4, F64: 1e-11}
NETWORKS = {
    "linear": NormNetwork(5, 12, 2, 3),
    "wide": NormNetwork(20, 40, 1, 70),
    "ones": NormNetwork(3, 16, 3, 17, "ones"),
    "tanh": NormNetwork(4, 8, 1, 1, "tanh_square"),
    "skipping": NormNetwork(3, 8, 2, 2, n_skipped=5),
}


def problem(network, n, generator, k=2):
    """x, parameters, offsets, index; gains about 1."""
    x = torch.randn(n, network.n_in, generator=generator, dtype=F64)
    parameters = 0.5 * torch.randn(network.n_parameters, generator=generator, dtype=F64)
    offsets = 0.5 * torch.randn(4, network.n_hidden, generator=generator, dtype=F64)
    return x, parameters, offsets, torch.randint(4, (n, k), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 37])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, name, n, dtype, generator, device):
    network = NETWORKS[name]
    *tensors, index = problem(network, n, generator)
    where = "cpu" if path == "cpu" else device
    given = tuple(t.to(where, dtype).requires_grad_() for t in tensors)
    exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in given)
    value = norm_network(*given[:2], network, given[2], index.to(where))
    want = norm_network_reference(*exact[:2], network, exact[2], index)
    assert value.dtype == dtype
    assert value.shape == (n, network.n_out)
    got = [value, *derivatives(value, given, 2)]
    for a, b in zip(got, [want, *derivatives(want, exact, 2)], strict=True):
        assert_close(a, b, WIDER[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("path", PATHS)
def test_first_derivative_in_x_alone(path, name, dtype, generator, device):
    """As in force passes: on a GPU one kernel, and without a table."""
    network = NETWORKS[name]
    x, parameters, offsets, index = problem(network, 33, generator)
    where = "cpu" if path == "cpu" else device
    weight = torch.randn(33, network.n_out, generator=generator, dtype=F64)
    for table in ((), (offsets, index)):
        mine = tuple(t.to(where) if t.dtype == torch.int64 else t.to(where, dtype) for t in table)
        leaf = x.to(where, dtype).requires_grad_()
        value = norm_network(leaf, parameters.to(where, dtype), network, *mine)
        (slope,) = torch.autograd.grad(value, leaf, weight.to(value))
        exact = x.clone().requires_grad_()
        want = norm_network_reference(exact, parameters, network, *table)
        (right,) = torch.autograd.grad(want, exact, weight)
        assert_close(slope, right, WIDER[dtype])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradcheck(name, generator):
    network = NETWORKS[name]._replace(n_in=2, n_hidden=4, n_out=5 if name == "ones" else 2)
    x, parameters, offsets, index = problem(network, 2, generator)
    given = tuple(t.requires_grad_() for t in (x, parameters, offsets))

    def run(*tensors):
        return norm_network(*tensors[:2], network, tensors[2], index)

    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("path", PATHS)
def test_training_step(path, name, generator, device):
    """A loss of values and of their derivatives in x: gradients in all parameters, on a GPU by kernels."""
    network = NETWORKS[name]
    x, parameters, offsets, index = problem(network, 33, generator)
    where = "cpu" if path == "cpu" else device
    weight = torch.randn(33, network.n_out, generator=generator, dtype=F64)

    def slopes(run, where):
        given = [t.to(where).requires_grad_() for t in (x, parameters, offsets)]
        value = run(given[0], given[1], network, given[2], index.to(where))
        (slope,) = torch.autograd.grad(value, given[0], weight.to(where), create_graph=True)
        found = torch.autograd.grad(value.square().sum() + slope.square().sum(), given)
        return [value, slope, *found]

    got, want = slopes(norm_network, where), slopes(norm_network_reference, "cpu")
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, WIDER[F64])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NETWORKS)
def test_third_derivatives(path, name, generator, device):
    network = NETWORKS[name]
    x, parameters, offsets, index = problem(network, 5, generator)
    where = "cpu" if path == "cpu" else device

    def third(run, where):
        given = [t.to(where).requires_grad_() for t in (x, parameters, offsets)]
        value = run(given[0], given[1], network, given[2], index.to(where)).square().sum()
        (slope,) = torch.autograd.grad(value, given[0], create_graph=True)
        bends = torch.autograd.grad(slope.square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum(bend.square().sum() for bend in bends), given)

    for a, b in zip(third(norm_network, where), third(norm_network_reference, "cpu"), strict=True):
        assert_close(a, b, WIDER[F64])


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    from scfmlip_kernels.registry import describe

    network = NETWORKS["linear"]
    x, parameters, offsets, index = problem(network, 3, generator)
    given = (*(t.requires_grad_() for t in (x, parameters, offsets)), index, describe(network))
    torch.library.opcheck(torch.ops.scfmlip.norm_network.default, given)


def test_refuses():
    network = NETWORKS["linear"]
    x, parameters = torch.ones(2, 5), torch.ones(network.n_parameters)
    with pytest.raises(ValueError, match=r"parameters must be \[315\]"):
        norm_network(x, parameters[1:], network)
    with pytest.raises(ValueError, match="offsets and index go together"):
        norm_network(x, parameters, network, torch.ones(2, 12))
    with pytest.raises(ValueError, match="index names offsets 0 to 2, there are 2"):
        norm_network(x, parameters, network, torch.ones(2, 12), torch.tensor([[0], [2]]))
    with pytest.raises(ValueError, match="with end='ones' there are 13 outputs"):
        norm_network(x, parameters, network._replace(end="ones"))
    with pytest.raises(ValueError, match="end must be one of"):
        norm_network(x, parameters, network._replace(end="relu"))
