"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from ..registry import constant_text
from .description import NormNetwork, network_of
from .kernel import launch_norm_network, launch_norm_network_backward
from .plain import gradients_plain, tangent_plain, values_plain


@operator("scfmlip::norm_network")
def _norm_network(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, text: str
) -> tuple[Tensor, Tensor]:
    network = network_of(text)
    if not runs_triton(x):
        return values_plain(x, parameters, offsets, index, network), x.new_empty(0)
    offsets = None if offsets is None else offsets.contiguous()
    index = None if index is None else index.contiguous()
    return launch_norm_network(x.contiguous(), parameters.contiguous(), offsets, index, network)


@_norm_network.register_fake
def _(x, parameters, offsets, index, text):
    network = network_of(text)
    size = 0
    if runs_triton(x):
        more = network.n_out if network.end == "tanh_square" else 0
        size = x.shape[0] * (network.n_layers * network.n_hidden + more)
    return x.new_empty((x.shape[0], network.n_out)), x.new_empty(size)


@operator("scfmlip::norm_network_backward")
def _norm_network_backward(grad: Tensor, parameters: Tensor, saved: Tensor, text: str) -> Tensor:
    return launch_norm_network_backward(grad.contiguous(), parameters.contiguous(), saved, network_of(text))


@_norm_network_backward.register_fake
def _(grad, parameters, saved, text):
    return grad.new_empty((grad.shape[0], network_of(text).n_in))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    x, parameters, offsets, index, saved = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() or any(wanted[1:]) or not runs_triton(x):
        network = network_of(ctx.text)
        found = gradients_plain(x, parameters, offsets, index, grad, network, wanted)
        return *found, None, None
    d_x = torch.ops.scfmlip.norm_network_backward(grad, parameters, saved, ctx.text) if wanted[0] else None
    return d_x, None, None, None, None


def _jvp(args, tangents):
    *tensors, text = args
    return tangent_plain(tensors, tangents, network_of(text)), None


_norm_network.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
vmap_by_loop(_norm_network, "norm_network")
vmap_by_loop(_norm_network_backward, "norm_network_backward")


def norm_network(
    x: Tensor,
    parameters: Tensor,
    network: NormNetwork,
    offsets: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    r"""
    A network whose hidden layers are a linear map, a layer norm and silu, in one operator.

    ``h_0 = x``, ``h_i = silu(norm(W_i h_{i-1} + b_i) * gain_i + shift_i)``, then ``W h + b``, ``tanh`` of its
    square, or the last hidden features with a 1 behind them. The first layer may add rows of a table: what
    inputs that take few values, such as one-hot species, contribute to it.

    Args:
        x: ``[n_rows, n_in]`` float32 or float64.
        parameters: ``[n_parameters]``, same dtype, see `NormNetwork`.
        network: Sizes.
        offsets: ``[n_offsets, n_hidden]`` rows that the first layer adds; may be None.
        index: ``[n_rows, k]`` int64 the k of them that each row adds; goes with ``offsets``.

    Returns:
        ``[n_rows, n_out]``. Differentiable twice in ``x``, ``parameters`` and ``offsets``; derivatives in x
        alone run in one launch, others in PyTorch.

    Raises:
        TypeError: for a dtype that is not float32 or float64, or different ones.
        ValueError: for shapes that do not match, or an inconsistent description.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import NormNetwork, norm_network
        >>> network = NormNetwork(n_in=2, n_hidden=4, n_layers=1, n_out=1)
        >>> parameters = torch.linspace(-1, 1, network.n_parameters)
        >>> norm_network(torch.tensor([[1.0, 2.0]]), parameters, network)
        tensor([[2.2067]])
    """
    text = constant_text(network)
    x, parameters, offsets = outside_autocast(x, parameters, offsets)
    tensors = {"x": x, "parameters": parameters}
    if (offsets is None) != (index is None):
        raise ValueError("norm_network: offsets and index go together, one of them is None")
    if offsets is not None and index is not None:
        tensors["offsets"] = offsets
        check_tensors("norm_network", x=x, index=index)
        check_shape("norm_network", "offsets", offsets, ("n_offsets", network.n_hidden))
        check_shape("norm_network", "index", index, (x.shape[0], "k"))
        check_index("norm_network", "index", index, len(offsets), "offsets")
    check_tensors("norm_network", **tensors)
    check_floats("norm_network", **tensors)
    check_shape("norm_network", "x", x, ("n_rows", network.n_in))
    check_shape("norm_network", "parameters", parameters, (network.n_parameters,))
    return torch.ops.scfmlip.norm_network(x, parameters, offsets, index, text)[0]
