"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import check_floats, check_index, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from ..registry import constant_text
from .description import NormNetwork, network_of
from .kernel import (
    launch_norm_network,
    launch_norm_network_backward,
    launch_norm_network_gradients,
)
from .kernel_second import launch_norm_network_second
from .plain import (
    backward_plain,
    backward_tangent_plain,
    gradients_plain,
    saved_size,
    second_plain,
    tangent_plain,
    values_plain,
)


@operator("scfmlip::norm_network")
def _norm_network(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, text: str
) -> tuple[Tensor, Tensor]:
    network = network_of(text)
    if not runs_triton(x):
        return values_plain(x, parameters, offsets, index, network)
    offsets = None if offsets is None else offsets.contiguous()
    index = None if index is None else index.contiguous()
    return launch_norm_network(x.contiguous(), parameters.contiguous(), offsets, index, network)


@_norm_network.register_fake
def _(x, parameters, offsets, index, text):
    network = network_of(text)
    return x.new_empty((x.shape[0], network.n_out)), x.new_empty(saved_size(x.shape[0], network))


@operator("scfmlip::norm_network_backward")
def _norm_network_backward(
    grad: Tensor, parameters: Tensor, saved: Tensor, keep: bool, text: str
) -> tuple[Tensor, Tensor]:
    run = launch_norm_network_backward if runs_triton(grad) else backward_plain
    return run(grad.contiguous(), parameters.contiguous(), saved.contiguous(), keep, network_of(text))


@_norm_network_backward.register_fake
def _(grad, parameters, saved, keep, text):
    network = network_of(text)
    kept = (network.n_layers, grad.shape[0], network.n_hidden) if keep else 0
    return grad.new_empty((grad.shape[0], network.n_in)), grad.new_empty(kept)


@operator("scfmlip::norm_network_gradients")
def _norm_network_gradients(
    grad: Tensor,
    more: Tensor | None,
    x: Tensor,
    parameters: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    saved: Tensor,
    wanted: list[bool],
    text: str,
) -> tuple[Tensor, Tensor, Tensor]:
    network = network_of(text)
    if runs_triton(x):
        more = None if more is None else more.contiguous()
        given = x.contiguous(), parameters.contiguous(), offsets, index
        found = launch_norm_network_gradients(grad.contiguous(), more, given, saved, network, wanted)
    else:
        found = gradients_plain(grad, more, (x, parameters, offsets, index), saved, network, wanted)
    return tuple(x.new_empty(0) if g is None else g for g in found)  # type: ignore[return-value]


@_norm_network_gradients.register_fake
def _(grad, more, x, parameters, offsets, index, saved, wanted, text):
    given = (x, parameters, offsets)
    return tuple(
        x.new_empty(t.shape if w and t is not None else 0) for t, w in zip(given, wanted, strict=True)
    )


@operator("scfmlip::norm_network_second")
def _norm_network_second(
    v: Tensor, grad: Tensor, parameters: Tensor, saved: Tensor, kept: Tensor, text: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_norm_network_second if runs_triton(grad) else second_plain
    tensors = (t.contiguous() for t in (v, grad, parameters, saved, kept))
    return run(*tensors, network_of(text))


@_norm_network_second.register_fake
def _(v, grad, parameters, saved, kept, text):
    return grad.new_empty(grad.shape), parameters.new_empty(parameters.shape), saved.new_empty(saved.shape)


def _differentiated() -> bool:
    """Whether derivatives of what a backward pass gives may be asked for."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, more):
    *tensors, saved = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    if (grad is None and more is None) or not any(wanted):
        return (None,) * 5
    if more is None and not any(wanted[1:]):
        keep = _differentiated()
        d_x, _ = torch.ops.scfmlip.norm_network_backward(grad, tensors[1], saved, keep, ctx.text)
        return d_x, None, None, None, None
    if grad is None:
        grad = tensors[0].new_zeros((len(tensors[0]), network_of(ctx.text).n_out))
    if _differentiated():
        found = gradients_plain(grad, more, tensors, saved, network_of(ctx.text), wanted)
    else:
        found = torch.ops.scfmlip.norm_network_gradients(grad, more, *tensors, saved, wanted, ctx.text)
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), None, None


def _jvp(args, tangents):
    *tensors, text = args
    saved = torch.ops.scfmlip.norm_network(*tensors, text)[1]
    return tangent_plain(tensors, saved, tangents, network_of(text))


def _backward_setup_context(ctx, inputs, output):
    *tensors, _, ctx.text = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, v, _):
    grad, parameters, saved, kept = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if v is None or not any(wanted):
        return (None,) * 5
    if _differentiated() or not len(kept):
        found = second_plain(v, grad, parameters, saved, None, network_of(ctx.text))
    else:
        found = torch.ops.scfmlip.norm_network_second(v, grad, parameters, saved, kept, ctx.text)
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), None, None


def _backward_jvp(args, tangents):
    *tensors, _, text = args
    return backward_tangent_plain(tensors, tangents[:3], network_of(text)), None


_norm_network.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
_norm_network_backward.register_autograd(
    _backward_backward, setup_context=_backward_setup_context, jvp=_backward_jvp
)
for _each, _name in (
    (_norm_network, "norm_network"),
    (_norm_network_backward, "norm_network_backward"),
    (_norm_network_gradients, "norm_network_gradients"),
    (_norm_network_second, "norm_network_second"),
):
    vmap_by_loop(_each, _name)


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
        ``[n_rows, n_out]``. Differentiable any number of times in ``x``, ``parameters`` and ``offsets``.
        First derivatives, and derivatives of those in x, run in one launch and a product for each kind of
        matrix; others run in PyTorch.

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
