"""
Bessel functions with a polynomial cutoff, in PyTorch.

``f_n(x, y) = a sin(w_n x) / x E(y / r)`` with ``E(u) = 1 - (p + 1) (p + 2) / 2 u^p + p (p + 2) u^(p + 1) -
p (p + 1) / 2 u^(p + 2)`` below u = 1 and 0 beyond: Gasteiger, Gross and Gunnemann, ICLR 2020, eqs. 7 and 8.
"""

import torch
from torch import Tensor


def envelope(y: Tensor, reach: Tensor, p: Tensor) -> Tensor:
    """E, ``[n, 1]``."""
    u, p = y / reach, p.to(y.dtype)
    inner = 1 - 0.5 * (p + 1) * (p + 2) * u**p + p * (p + 2) * u ** (p + 1) - 0.5 * p * (p + 1) * u ** (p + 2)
    return torch.where(y < reach, inner, torch.zeros_like(inner))


def envelope_slope(y: Tensor, reach: Tensor, p: Tensor) -> Tensor:
    """``dE / dy``, ``[n, 1]``."""
    u, p = y / reach, p.to(y.dtype)
    inner = -0.5 * p * (p + 1) * (p + 2) * u ** (p - 1) * (1 - u) ** 2 / reach
    return torch.where(y < reach, inner, torch.zeros_like(inner))


def basis_plain(
    x: Tensor, y: Tensor, frequencies: Tensor, scale: Tensor, reach: Tensor, p: Tensor, separate: bool
) -> Tensor:
    """``[n, n_basis]``, or ``[n, n_basis + 1]`` with E by itself; arguments as in `radial_basis`."""
    waves, cut = scale * torch.sin(frequencies * x) / x, envelope(y, reach, p)
    return torch.cat((waves, cut), 1) if separate else waves * cut


def gradients_plain(
    x: Tensor,
    y: Tensor,
    frequencies: Tensor,
    scale: Tensor,
    reach: Tensor,
    p: Tensor,
    grad: Tensor,
    separate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``sum grad f`` in x and y ``[n, 1]``, and in the frequencies."""
    sin, cos = torch.sin(frequencies * x), torch.cos(frequencies * x)
    cut, slope = envelope(y, reach, p), envelope_slope(y, reach, p)
    own = grad[:, :-1] if separate else grad * cut
    d_x = (own * scale * (frequencies * cos - sin / x) / x).sum(1, keepdim=True)
    d_y = (grad[:, -1:] if separate else (grad * scale * sin / x).sum(1, keepdim=True)) * slope
    return d_x, d_y, (own * scale * cos).sum(0)


def tangent_plain(
    tensors: tuple[Tensor, ...], along: tuple[Tensor | None, Tensor | None, Tensor | None], separate: bool
) -> Tensor:
    """Derivative of the values along directions in x, y and the frequencies; None is no direction."""
    x, y, frequencies, scale, reach, p = tensors
    along_x, along_y, along_w = along
    phase = frequencies * x
    sin, cos = torch.sin(phase), torch.cos(phase)
    waves, cut = torch.zeros_like(phase), torch.zeros_like(y)
    if along_x is not None:
        waves = waves + scale * (frequencies * cos - sin / x) / x * along_x
    if along_w is not None:
        waves = waves + scale * cos * along_w
    if along_y is not None:
        cut = envelope_slope(y, reach, p) * along_y
    if separate:
        return torch.cat((waves, cut), 1)
    return waves * envelope(y, reach, p) + scale * sin / x * cut
