"""Operator registration: dispatch, fake tensors, derivatives, public function."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import check_floats, check_shape, check_tensors, outside_autocast
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from ..registry import constant_text
from .description import Gate, gate_of
from .kernel import launch_gated, launch_gated_backward, launch_gated_second
from .plain import (
    gated_plain,
    gradients_plain,
    gradients_tangent_plain,
    second_plain,
    tangent_plain,
)


def _contiguous(*tensors: Tensor | None) -> tuple:
    return tuple(None if t is None else t.contiguous() for t in tensors)


@operator("scfmlip::gated")
def _gated(x: Tensor, divisor: Tensor | None, residual: Tensor | None, text: str) -> Tensor:
    run = launch_gated if runs_triton(x) else gated_plain
    return run(*_contiguous(x, divisor, residual), gate_of(text))


@_gated.register_fake
def _(x, divisor, residual, text):
    return x.new_empty((x.shape[0], gate_of(text).n_out))


def _shapes(x: Tensor, divisor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and the divisor: empty without a divisor, which makes x's that of the residual."""
    if divisor is None:
        return x.new_empty(0), x.new_empty(0)
    return x.new_empty(x.shape), divisor.new_empty(divisor.shape)


@operator("scfmlip::gated_backward")
def _gated_backward(
    x: Tensor, divisor: Tensor | None, residual: Tensor | None, grad: Tensor, text: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_gated_backward if runs_triton(x) else gradients_plain
    return run(*_contiguous(x, divisor, residual, grad), gate_of(text))


@_gated_backward.register_fake
def _(x, divisor, residual, grad, text):
    return *_shapes(x, divisor), x.new_empty(x.shape)


@operator("scfmlip::gated_second")
def _gated_second(
    v_x: Tensor | None,
    v_divisor: Tensor | None,
    v_y: Tensor | None,
    x: Tensor,
    divisor: Tensor | None,
    residual: Tensor | None,
    grad: Tensor,
    d_y: Tensor,
    text: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = launch_gated_second if runs_triton(x) else second_plain
    tensors = _contiguous(x, divisor, residual, grad)
    return run(_contiguous(v_x, v_divisor, v_y), tensors, d_y.contiguous(), gate_of(text))


@_gated_second.register_fake
def _(v_x, v_divisor, v_y, x, divisor, residual, grad, d_y, text):
    return *_shapes(x, divisor), x.new_empty(x.shape), grad.new_empty(grad.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    d_x, d_divisor, d_y = torch.ops.scfmlip.gated_backward(*ctx.saved_tensors, grad, ctx.text)
    found = (d_y if ctx.saved_tensors[1] is None else d_x, d_divisor, d_y)
    return *(g if w else None for g, w in zip(found, ctx.needs_input_grad[:3], strict=True)), None


def _jvp(args, tangents):
    *tensors, text = args
    return tangent_plain(tensors, tangents[:3], gate_of(text))


def _backward_setup_context(ctx, inputs, output):
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, *along):
    *tensors, d_y = ctx.saved_tensors
    if all(v is None for v in along):
        return (None,) * 5
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        found = second_plain(along, tensors, None, gate_of(ctx.text))
    else:
        found = torch.ops.scfmlip.gated_second(*along, *tensors, d_y, ctx.text)
    if tensors[1] is None:
        found = (found[2], *found[1:])
    return *(g if w else None for g, w in zip(found, ctx.needs_input_grad[:4], strict=True)), None


def _backward_jvp(args, tangents):
    *tensors, text = args
    return gradients_tangent_plain(tensors, tangents[:4], gate_of(text))


_gated.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
_gated_backward.register_autograd(
    _backward_backward, setup_context=_backward_setup_context, jvp=_backward_jvp
)
vmap_by_loop(_gated, "gated")
vmap_by_loop(_gated_backward, "gated_backward")
vmap_by_loop(_gated_second, "gated_second")


def gated(x: Tensor, gate: Gate, divisor: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """
    A gate: functions of the scalars of a row, and its other columns times functions of their gates.

    With ``y = x / divisor + residual``: ``silu(y_s)`` of scalars, ``sigmoid(y_g) y_v`` of gated columns.

    Args:
        x: ``[n_rows, n_in]`` float32 or float64: scalars, gates, gated columns.
        gate: Their numbers, the functions, and what these are multiplied by.
        divisor: ``[n_rows, 1]`` what each row is divided by first; may be None.
        residual: ``[n_rows, n_in]`` what is added then; may be None.

    Returns:
        ``[n_rows, n_out]``. Differentiable any number of times in all tensors; first and second derivatives
        run in one launch each, others in PyTorch.

    Raises:
        TypeError: for another dtype, or different ones.
        ValueError: for shapes that do not match, or an inconsistent gate.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import Gate, gated
        >>> gate = Gate(n_scalars=1, groups=(0, 0, 0), n_gates=1)
        >>> gated(torch.tensor([[2.0, 0.0, 1.0, 2.0, 4.0]]), gate)
        tensor([[1.7616, 0.5000, 1.0000, 2.0000]])
    """
    text = constant_text(gate)
    x, divisor, residual = outside_autocast(x, divisor, residual)
    tensors = {"x": x}
    for name, tensor, size in (("divisor", divisor, 1), ("residual", residual, gate.n_in)):
        if tensor is not None:
            tensors[name] = tensor
            check_shape("gated", name, tensor, (x.shape[0], size))
    check_tensors("gated", **tensors)
    check_floats("gated", **tensors)
    check_shape("gated", "x", x, ("n_rows", gate.n_in))
    return torch.ops.scfmlip.gated(x, divisor, residual, text)
