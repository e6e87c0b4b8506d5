"""
Between the structure factors and the series of an Ewald sum: weights of waves, energies, coefficients.

Formulas in `formulas`; float64 throughout. Grid: blocks of waves; a program owns its waves, and walks over
channels and widths. Derivatives in the cell are written for each wave and added by `segment_sum`. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..tuned import compiler_options

_BLOCK = 128


@triton.jit
def _wave_weights_kernel(
    inverse_ptr,  # [n_systems, 3, 3]
    volume_ptr,  # [n_systems]
    miller_ptr,  # [n_points, 3] int32
    system_ptr,  # [n_points] int64
    weight_ptr,  # [n_points]
    height_ptr,  # [n_systems] 0 for what is not cut off
    axis_ptr,  # [n_systems] int64
    grad_ptr,  # [n_points, 2]
    out_ptr,  # [n_points, 2], or [n_points, 10] derivatives
    n_points,
    CUT: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = point < n_points
    system = tl.load(system_ptr + point, mask=inside, other=0)
    h = tl.load(miller_ptr + point * 3, mask=inside, other=0)
    k = tl.load(miller_ptr + point * 3 + 1, mask=inside, other=0)
    l = tl.load(miller_ptr + point * 3 + 2, mask=inside, other=0)
    weight = tl.load(weight_ptr + point, mask=inside, other=0.0)
    volume = tl.load(volume_ptr + system, mask=inside, other=1.0)
    x = tl.zeros((BLOCK,), tl.float64)
    y = tl.zeros((BLOCK,), tl.float64)
    z = tl.zeros((BLOCK,), tl.float64)
    for c in tl.static_range(3):
        if c == 0:
            n = h.to(tl.float64)
        elif c == 1:
            n = k.to(tl.float64)
        else:
            n = l.to(tl.float64)
        x += n * tl.load(inverse_ptr + system * 9 + c, mask=inside, other=0.0)
        y += n * tl.load(inverse_ptr + system * 9 + 3 + c, mask=inside, other=0.0)
        z += n * tl.load(inverse_ptr + system * 9 + 6 + c, mask=inside, other=0.0)
    square = 39.47841760435743 * (x * x + y * y + z * z)
    used = weight != 0.0
    safe = tl.where(used, square, square * 0.0 + 1.0)
    whole = weight / (volume * safe)
    image = square * 0.0
    image_slope = square * 0.0
    if CUT:
        height = tl.load(height_ptr + system, mask=inside, other=0.0)
        axis = tl.load(axis_ptr + system, mask=inside, other=0)
        m = tl.where(axis == 0, h, tl.where(axis == 1, k, l))
        others = tl.abs(h) + tl.abs(k) + tl.abs(l) - tl.abs(m)
        lateral = used & (others != 0) & (height > 0.0)
        reach = tl.where(lateral, height, square * 0.0 + 1.0)
        along = 6.283185307179586 * m.to(tl.float64) / reach
        wave = tl.sqrt(tl.where(lateral, square - along * along, square * 0.0 + 1.0))
        image = tl.where(lateral, tl.exp(-0.5 * wave * reach), square * 0.0)
        image = tl.where((m & 1) == 1, -image, image)
        image_slope = -0.25 * reach / wave * image
    strength = whole * (1.0 - image)
    if DERIVATIVE:
        along_k = tl.load(grad_ptr + point * 2, mask=inside, other=0.0)
        along_c = tl.load(grad_ptr + point * 2 + 1, mask=inside, other=0.0)
        slope = -strength / safe - whole * image_slope
        factor = 78.95683520871486 * (along_k + along_c * slope)
        out = out_ptr + point * 10
        for c in tl.static_range(3):
            if c == 0:
                n = h.to(tl.float64) * factor
            elif c == 1:
                n = k.to(tl.float64) * factor
            else:
                n = l.to(tl.float64) * factor
            tl.store(out + c, n * x, mask=inside)
            tl.store(out + 3 + c, n * y, mask=inside)
            tl.store(out + 6 + c, n * z, mask=inside)
        tl.store(out + 9, -along_c * strength / volume, mask=inside)
    else:
        tl.store(out_ptr + point * 2, square, mask=inside)
        tl.store(out_ptr + point * 2 + 1, strength, mask=inside)


@triton.jit
def _density(sums, widths_ptr, square, inside, n_widths):
    """Real and imaginary part of the density of one channel, without the window."""
    re = square * 0.0
    im = square * 0.0
    for w in range(n_widths):
        width = tl.load(widths_ptr + w)
        factor = tl.exp(-0.5 * width * width * square)
        re += factor * tl.load(sums + w * 2, mask=inside, other=0.0)
        im += factor * tl.load(sums + w * 2 + 1, mask=inside, other=0.0)
    return re, im


@triton.jit
def _wave_sums_kernel(
    sums_ptr,  # [n_points, n_channels, n_widths, 2]
    waves_ptr,  # [n_points, 2] k^2 and c
    window_ptr,  # [n_points]
    widths_ptr,  # [n_widths]
    receivers_ptr,  # [n_receivers]
    grad_ptr,  # of the shape of the result, for derivatives
    out_ptr,  # [n_points, n_channels] energies, [n_points, n_channels, n_receivers, 2], or d_sums
    d_waves_ptr,  # [n_points, 2]
    n_points,
    n_channels,
    n_widths,
    n_receivers,
    WINDOW: tl.constexpr,
    ENERGY: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = point < n_points
    square = tl.load(waves_ptr + point * 2, mask=inside, other=0.0)
    strength = tl.load(waves_ptr + point * 2 + 1, mask=inside, other=0.0)
    window = square * 0.0 + 1.0
    if WINDOW:
        window = tl.load(window_ptr + point, mask=inside, other=0.0)
    d_square = square * 0.0
    d_strength = square * 0.0
    for channel in range(n_channels):
        row = point * n_channels + channel
        sums = sums_ptr + row * n_widths * 2
        re, im = _density(sums, widths_ptr, square, inside, n_widths)
        re = re * window
        im = im * window
        d_re = square * 0.0
        d_im = square * 0.0
        if ENERGY:
            density = re * re + im * im
            if DERIVATIVE:
                grad = tl.load(grad_ptr + row, mask=inside, other=0.0)
                d_strength += grad * density
                d_re = 2.0 * strength * grad * re
                d_im = 2.0 * strength * grad * im
            else:
                tl.store(out_ptr + row, strength * density, mask=inside)
        else:
            for r in range(n_receivers):
                width = tl.load(receivers_ptr + r)
                factor = 2.0 * window * tl.exp(-0.5 * width * width * square)
                place = (row * n_receivers + r) * 2
                if DERIVATIVE:
                    along_re = tl.load(grad_ptr + place, mask=inside, other=0.0)
                    along_im = tl.load(grad_ptr + place + 1, mask=inside, other=0.0)
                    received = factor * (along_re * re + along_im * im)
                    d_strength += received
                    d_square -= 0.5 * width * width * strength * received
                    d_re += strength * factor * along_re
                    d_im += strength * factor * along_im
                else:
                    tl.store(out_ptr + place, strength * factor * re, mask=inside)
                    tl.store(out_ptr + place + 1, strength * factor * im, mask=inside)
        if DERIVATIVE:
            for w in range(n_widths):
                width = tl.load(widths_ptr + w)
                factor = window * tl.exp(-0.5 * width * width * square)
                own_re = tl.load(sums + w * 2, mask=inside, other=0.0)
                own_im = tl.load(sums + w * 2 + 1, mask=inside, other=0.0)
                d_square -= 0.5 * width * width * factor * (d_re * own_re + d_im * own_im)
                out = out_ptr + row * n_widths * 2 + w * 2
                tl.store(out, factor * d_re, mask=inside)
                tl.store(out + 1, factor * d_im, mask=inside)
    if DERIVATIVE:
        tl.store(d_waves_ptr + point * 2, d_square, mask=inside)
        tl.store(d_waves_ptr + point * 2 + 1, d_strength, mask=inside)


def launch_wave_weights(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None,
    axis: Tensor | None,
    grad: Tensor | None = None,
) -> Tensor:
    """``[n_points, 2]``, or ``[n_points, 10]`` with ``grad``; contiguous arguments."""
    n_points = len(miller)
    out = weight.new_empty((n_points, 2 if grad is None else 10))
    if n_points:
        _wave_weights_kernel[(triton.cdiv(n_points, _BLOCK),)](
            inverse_ptr=inverse,
            volume_ptr=volume,
            miller_ptr=miller,
            system_ptr=system,
            weight_ptr=weight,
            height_ptr=height,
            axis_ptr=axis,
            grad_ptr=grad,
            out_ptr=out,
            n_points=n_points,
            CUT=height is not None,
            DERIVATIVE=grad is not None,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, weight),
        )
    return out


def launch_wave_sums(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    widths: tuple[float, ...],
    receivers: tuple[float, ...] | None,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Energies without receivers, else coefficients; with ``grad`` the derivatives in the sums and the waves.

    Contiguous arguments. Without ``grad`` the second result has no meaning.
    """
    n_points, n_channels, n_widths, _ = sums.shape
    n_receivers = 0 if receivers is None else len(receivers)
    d_waves = waves
    if grad is not None:
        out, d_waves = torch.empty_like(sums), torch.empty_like(waves)
    elif receivers is None:
        out = sums.new_empty((n_points, n_channels))
    else:
        out = sums.new_empty((n_points, n_channels, n_receivers, 2))
    if n_points:
        own = constant(widths, torch.float64, sums.device)
        _wave_sums_kernel[(triton.cdiv(n_points, _BLOCK),)](
            sums_ptr=sums,
            waves_ptr=waves,
            window_ptr=window,
            widths_ptr=own,
            receivers_ptr=own if receivers is None else constant(receivers, torch.float64, sums.device),
            grad_ptr=grad,
            out_ptr=out,
            d_waves_ptr=d_waves,
            n_points=n_points,
            n_channels=n_channels,
            n_widths=n_widths,
            n_receivers=n_receivers,
            WINDOW=window is not None,
            ENERGY=receivers is None,
            DERIVATIVE=grad is not None,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, sums),
        )
    return out, d_waves
