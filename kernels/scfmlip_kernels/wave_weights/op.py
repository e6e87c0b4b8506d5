"""Operator registration: dispatch, fake tensors, derivatives, public functions."""

# saved tensors are handed on as one tuple
# pyright: reportCallIssue=false

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_shape, check_tensors
from ..constants import constant
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .formulas import (
    coefficients_gradient_plain,
    coefficients_plain,
    energies_gradient_plain,
    energies_plain,
    weights_gradient_plain,
    weights_plain,
)
from .kernel import launch_wave_sums, launch_wave_weights


@operator("scfmlip::wave_weights")
def _wave_weights(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None,
    axis: Tensor | None,
) -> Tensor:
    run = launch_wave_weights if runs_triton(weight) else weights_plain
    return run(inverse.contiguous(), volume.contiguous(), miller, system, weight, height, axis)


@_wave_weights.register_fake
def _(inverse, volume, miller, system, weight, height, axis):
    return weight.new_empty((weight.shape[0], 2))


@operator("scfmlip::wave_weights_backward")
def _wave_weights_backward(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None,
    axis: Tensor | None,
    grad: Tensor,
) -> Tensor:
    run = launch_wave_weights if runs_triton(weight) else weights_gradient_plain
    given = (inverse.contiguous(), volume.contiguous(), miller, system, weight, height, axis)
    return run(*given, grad.contiguous())


@_wave_weights_backward.register_fake
def _(inverse, volume, miller, system, weight, height, axis, grad):
    return weight.new_empty((weight.shape[0], 10))


def _setup_weights(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _by_system(parts: Tensor, ctx_tensors: Sequence[Tensor]) -> Tensor:
    """Sums over the waves of each system, which are sorted by system."""
    inverse, _, _, system, *_ = ctx_tensors
    if len(inverse) == 1:
        return parts.sum(0, keepdim=True)
    numbers = torch.arange(len(inverse) + 1, device=system.device)
    return torch.ops.scfmlip.segment_sum(parts, torch.searchsorted(system, numbers), system)


def _weights_backward(ctx, grad):
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():  # differentiated again
        parts = weights_gradient_plain(*tensors, grad)
    else:
        parts = torch.ops.scfmlip.wave_weights_backward(*tensors, grad)
    sums = _by_system(parts, tensors)
    return sums[:, :9].unflatten(1, (3, 3)), sums[:, 9], *(None,) * 5


def _weights_jvp(args, tangents):
    inverse, _, _, system, weight, *_ = args
    d_inverse, d_volume = tangents[:2]
    rows = torch.eye(2, dtype=weight.dtype, device=weight.device)
    along = torch.zeros((len(inverse), 10), dtype=inverse.dtype, device=inverse.device)
    if d_inverse is not None:
        along = torch.cat((d_inverse.flatten(1), along[:, 9:]), 1)
    if d_volume is not None:
        along = torch.cat((along[:, :9], d_volume[:, None]), 1)
    along = along.index_select(0, system)
    found = [
        (weights_gradient_plain(*args, row.expand(len(weight), 2)) * along).sum(1) for row in rows.unbind(0)
    ]
    return torch.stack(found, 1)


_wave_weights.register_autograd(_weights_backward, setup_context=_setup_weights, jvp=_weights_jvp)


@operator("scfmlip::wave_sums")
def _wave_sums(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    widths: Sequence[float],
    receivers: Sequence[float] | None,
) -> Tensor:
    sums, waves = sums.contiguous(), waves.contiguous()
    if runs_triton(sums):
        given = None if receivers is None else tuple(receivers)
        return launch_wave_sums(sums, waves, window, tuple(widths), given)[0]
    own, *others = _numbers(sums, widths, receivers)
    run = coefficients_plain if others else energies_plain
    return run(sums, waves, window, own, *others)


@_wave_sums.register_fake
def _(sums, waves, window, widths, receivers):
    shape = sums.shape[:2] if receivers is None else (*sums.shape[:2], len(receivers), 2)
    return sums.new_empty(shape)


@operator("scfmlip::wave_sums_backward")
def _wave_sums_backward(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    grad: Tensor,
    widths: Sequence[float],
    receivers: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    sums, waves, grad = sums.contiguous(), waves.contiguous(), grad.contiguous()
    if runs_triton(sums):
        given = None if receivers is None else tuple(receivers)
        return launch_wave_sums(sums, waves, window, tuple(widths), given, grad)
    return _gradient_plain(sums, waves, window, grad, widths, receivers)


@_wave_sums_backward.register_fake
def _(sums, waves, window, grad, widths, receivers):
    return sums.new_empty(sums.shape), waves.new_empty(waves.shape)


def _numbers(like: Tensor, widths, receivers) -> list[Tensor]:
    given = (widths,) if receivers is None else (widths, receivers)
    return [constant(tuple(w), torch.float64, like.device) for w in given]


def _gradient_plain(sums, waves, window, grad, widths, receivers) -> tuple[Tensor, Tensor]:
    own, *others = _numbers(sums, widths, receivers)
    run = coefficients_gradient_plain if others else energies_gradient_plain
    return run(sums, waves, window, own, *others, grad)


def _setup_sums(ctx, inputs, output):
    *tensors, ctx.widths, ctx.receivers = inputs
    ctx.save_for_backward(*tensors)


def _sums_backward(ctx, grad):
    tensors = ctx.saved_tensors
    # differentiated again, or not
    run = _gradient_plain if torch.is_grad_enabled() else torch.ops.scfmlip.wave_sums_backward
    d_sums, d_waves = run(*tensors, grad, ctx.widths, ctx.receivers)
    return d_sums, d_waves, None, None, None


def _sums_jvp(args, tangents):
    sums, waves, window, widths, receivers = args
    d_sums, d_waves = tangents[:2]
    found = None
    if d_sums is not None and receivers is not None:
        found = torch.ops.scfmlip.wave_sums(d_sums, waves, window, widths, receivers)
    elif d_sums is not None:  # of a square
        twice = torch.ops.scfmlip.wave_sums(sums + d_sums, waves, window, widths, None)
        found = 0.5 * (twice - torch.ops.scfmlip.wave_sums(sums - d_sums, waves, window, widths, None))
    if d_waves is not None:
        more = _along_waves(sums, waves, window, widths, receivers, d_waves)
        found = more if found is None else found + more
    return found


def _along_waves(sums, waves, window, widths, receivers, d_waves) -> Tensor:
    """Derivative of the results along directions of k^2 and c."""
    own, *others = _numbers(sums, widths, receivers)
    square, strength = (d[:, None, None, None] for d in d_waves.unbind(1))
    slower = -0.5 * own[:, None] ** 2 * square * sums
    one = torch.stack((waves[:, 0], torch.ones_like(waves[:, 1])), 1)
    if others:
        (far,) = others
        fade = -0.5 * far[:, None] ** 2 * square * coefficients_plain(sums, waves, window, own, far)
        fade = fade + strength * coefficients_plain(sums, one, window, own, far)
        return fade + coefficients_plain(slower, waves, window, own, far)
    both = energies_plain(sums + slower, waves, window, own) - energies_plain(
        sums - slower, waves, window, own
    )
    return 0.5 * both + strength[..., 0, 0] * energies_plain(sums, one, window, own)


_wave_sums.register_autograd(_sums_backward, setup_context=_setup_sums, jvp=_sums_jvp)
for _op, _name in (
    (_wave_weights, "wave_weights"),
    (_wave_weights_backward, "wave_weights_backward"),
    (_wave_sums, "wave_sums"),
    (_wave_sums_backward, "wave_sums_backward"),
):
    vmap_by_loop(_op, _name)


def wave_weights(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    r"""
    Squares of wave vectors, and the weights of the waves in an Ewald sum.

    ``k^2 = |2 pi inverse n|^2`` and ``c = weight / (volume k^2)``, times ``1 - (-1)^m exp(-G H / 2)`` for
    slabs that are cut off at half their height H; G is the part of k across the open axis (Sohier, Calandra
    and Mauri, Phys. Rev. B 96, 075448 (2017)).

    Args:
        inverse: ``[n_systems, 3, 3]`` float64 inverse cells, vectors in columns.
        volume: ``[n_systems]`` float64.
        miller: ``[n_points, 3]`` int32 n.
        system: ``[n_points]`` int64, not decreasing.
        weight: ``[n_points]`` float64; 0 where k = 0.
        height: ``[n_systems]`` float64 H, 0 for systems that are not cut off; None if none is. Not
            differentiated.
        axis: ``[n_systems]`` int64 open axis.

    Returns:
        ``[n_points, 2]`` k^2 and c, float64. Differentiable any number of times in ``inverse`` and
        ``volume``.

    Raises:
        ValueError: for shapes or dtypes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import wave_weights
        >>> inverse, volume = torch.eye(3, dtype=torch.float64)[None], torch.ones(1, dtype=torch.float64)
        >>> miller, system = torch.tensor([[0, 0, 1]], dtype=torch.int32), torch.tensor([0])
        >>> wave_weights(inverse, volume, miller, system, torch.ones(1, dtype=torch.float64))[:, 0].sqrt()
        tensor([6.2832], dtype=torch.float64)
    """
    check_tensors("wave_weights", inverse=inverse, volume=volume, miller=miller, system=system, weight=weight)
    check_shape("wave_weights", "inverse", inverse, ("n_systems", 3, 3))
    check_shape("wave_weights", "volume", volume, (inverse.shape[0],))
    check_shape("wave_weights", "miller", miller, ("n_points", 3))
    for name, tensor in (("system", system), ("weight", weight)):
        check_shape("wave_weights", name, tensor, (miller.shape[0],))
    _check_double("wave_weights", inverse=inverse, volume=volume, weight=weight)
    return torch.ops.scfmlip.wave_weights(inverse, volume, miller, system, weight, height, axis)


def wave_energies(sums: Tensor, waves: Tensor, window: Tensor | None, widths: tuple[float, ...]) -> Tensor:
    r"""
    The energy of each wave, ``c |sum_s b exp(-s^2 k^2 / 2) S_s|^2``.

    Args:
        sums: ``[n_points, n_channels, n_widths, 2]`` float64 structure factors S.
        waves: ``[n_points, 2]`` float64 from `wave_weights`.
        window: ``[n_points]`` float64 b, or None for 1.
        widths: Widths s.

    Returns:
        ``[n_points, n_channels]`` float64. Differentiable any number of times in ``sums`` and ``waves``.

    Raises:
        ValueError: for shapes or dtypes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import wave_energies
        >>> sums = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 2)
        >>> wave_energies(sums, torch.tensor([[0.0, 2.0]], dtype=torch.float64), None, (1.0,)).item()
        50.0
    """
    _check_sums("wave_energies", sums, waves, window, widths)
    return torch.ops.scfmlip.wave_sums(sums, waves, window, list(widths), None)


def wave_coefficients(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    widths: tuple[float, ...],
    receivers: tuple[float, ...],
) -> Tensor:
    r"""
    Coefficients of the potential's Fourier series, averaged over receiving Gaussians.

    ``2 c b exp(-r^2 k^2 / 2) sum_s b exp(-s^2 k^2 / 2) S_s`` for each receiver r.

    Args:
        sums: ``[n_points, n_channels, n_widths, 2]`` float64 structure factors S.
        waves: ``[n_points, 2]`` float64 from `wave_weights`.
        window: ``[n_points]`` float64 b, or None for 1.
        widths: Widths s.
        receivers: Widths r.

    Returns:
        ``[n_points, n_channels, n_receivers, 2]`` float64. Differentiable any number of times in ``sums`` and
        ``waves``.

    Raises:
        ValueError: for shapes or dtypes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import wave_coefficients
        >>> sums = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 2)
        >>> waves = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
        >>> wave_coefficients(sums, waves, None, (1.0,), (2.0,)).flatten().tolist()
        [12.0, 16.0]
    """
    _check_sums("wave_coefficients", sums, waves, window, widths)
    return torch.ops.scfmlip.wave_sums(sums, waves, window, list(widths), list(receivers))


def _check_double(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"{op}: {name} must be float64, got {tensor.dtype}: convert it with .double()")


def _check_sums(op: str, sums: Tensor, waves: Tensor, window: Tensor | None, widths: tuple) -> None:
    tensors = {"sums": sums, "waves": waves} | ({} if window is None else {"window": window})
    check_tensors(op, **tensors)
    check_shape(op, "sums", sums, ("n_points", "n_channels", len(widths), 2))
    check_shape(op, "waves", waves, (sums.shape[0], 2))
    if window is not None:
        check_shape(op, "window", window, (sums.shape[0],))
    _check_double(op, **tensors)
