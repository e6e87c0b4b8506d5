"""
What an Ewald sum does between its structure factors and its series, and the first derivatives, in PyTorch.

With k = 2 pi h n of the inverse cell h and Miller indices n, and w the weight of a wave over the volume V,
    c = w / (V k^2) (1 - (-1)^m exp(-G H / 2)),    f_s = b exp(-s^2 k^2 / 2),    rho = sum_s f_s S_s.
The bracket belongs to slabs that are cut off at half their height H: m is the index along the open axis and
G^2 = k^2 - (2 pi m / H)^2; it is left out for waves along that axis. b is the window of a mesh. Energies are
``c rho^2`` of each wave, coefficients of the series ``2 c f_r rho`` for every receiver r.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SQUARE = 4 * math.pi**2


def _waves(inverse: Tensor, miller: Tensor, system: Tensor) -> tuple[Tensor, Tensor]:
    """Miller indices in float64, and ``h n``, ``[n_points, 3]``."""
    n = miller.double()
    return n, (inverse.index_select(0, system) * n[:, None, :]).sum(2)


def _image(k_squared: Tensor, miller: Tensor, height: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """The term of a slab that is cut off, and its derivative in k^2; 0 where there is none."""
    along = torch.nn.functional.one_hot(axis, 3).bool()
    m = torch.where(along, miller, 0).sum(1).double()  # integers times a number would be float32
    lateral = (torch.where(along, 0, miller) != 0).any(1) & (height > 0)
    reach = torch.where(lateral, height, torch.ones_like(height))
    wave = torch.where(lateral, k_squared - (2 * math.pi * m / reach) ** 2, torch.ones_like(height)).sqrt()
    image = (1 - 2 * (m % 2)) * torch.exp(-0.5 * wave * reach)
    image = torch.where(lateral, image, torch.zeros_like(image))
    return image, -0.25 * reach / wave * image


def weights_plain(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None,
    axis: Tensor | None,
) -> Tensor:
    """``[n_points, 2]`` k^2 and c; arguments as in `wave_weights`."""
    _, wave = _waves(inverse, miller, system)
    k_squared = _SQUARE * (wave**2).sum(1)
    safe = torch.where(weight == 0, torch.ones_like(k_squared), k_squared)
    strength = weight / (volume.index_select(0, system) * safe)
    if height is not None and axis is not None:
        strength = strength * (1 - _image(safe, miller, height[system], axis[system])[0])
    return torch.stack((k_squared, strength), 1)


def weights_gradient_plain(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None,
    axis: Tensor | None,
    grad: Tensor,
) -> Tensor:
    """``[n_points, 10]`` derivatives of ``sum grad (k^2, c)`` in the inverse cell and the volume, by wave."""
    n, wave = _waves(inverse, miller, system)
    k_squared = _SQUARE * (wave**2).sum(1)
    safe = torch.where(weight == 0, torch.ones_like(k_squared), k_squared)
    size = volume.index_select(0, system)
    whole = weight / (size * safe)
    strength, slope = whole, -whole / safe
    if height is not None and axis is not None:
        image, image_slope = _image(safe, miller, height[system], axis[system])
        strength = whole * (1 - image)
        slope = -strength / safe - whole * image_slope
    along_k, along_c = grad.unbind(1)
    d_square = along_k + along_c * slope
    d_inverse = (2 * _SQUARE * d_square)[:, None, None] * wave[:, :, None] * n[:, None, :]
    return torch.cat((d_inverse.flatten(1), (-along_c * strength / size)[:, None]), 1)


def form_factors(k_squared: Tensor, window: Tensor | None, widths: Tensor) -> Tensor:
    """``[n_points, n_widths]``."""
    factors = torch.exp(-0.5 * widths**2 * k_squared[:, None])
    return factors if window is None else factors * window[:, None]


def energies_plain(sums: Tensor, waves: Tensor, window: Tensor | None, widths: Tensor) -> Tensor:
    """``[n_points, n_channels]``; arguments as in `wave_energies`."""
    factors = form_factors(waves[:, 0], window, widths)
    rho = (sums * factors[:, None, :, None]).sum(2)
    return waves[:, 1, None] * (rho**2).sum(-1)


def energies_gradient_plain(
    sums: Tensor, waves: Tensor, window: Tensor | None, widths: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``sum grad energies`` in the sums and the waves."""
    factors = form_factors(waves[:, 0], window, widths)
    rho = (sums * factors[:, None, :, None]).sum(2)
    d_rho = (2 * waves[:, 1, None] * grad)[..., None] * rho
    d_sums = d_rho[:, :, None] * factors[:, None, :, None]
    by_width = (d_sums * sums).sum((1, 3))
    d_square = -0.5 * (by_width * widths**2).sum(1)
    return d_sums, torch.stack((d_square, (grad * (rho**2).sum(-1)).sum(1)), 1)


def coefficients_plain(
    sums: Tensor, waves: Tensor, window: Tensor | None, widths: Tensor, receivers: Tensor
) -> Tensor:
    """``[n_points, n_channels, n_receivers, 2]``; arguments as in `wave_coefficients`."""
    rho = (sums * form_factors(waves[:, 0], window, widths)[:, None, :, None]).sum(2)
    factors = 2 * waves[:, 1, None] * form_factors(waves[:, 0], window, receivers)
    return rho[:, :, None] * factors[:, None, :, None]


def coefficients_gradient_plain(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    widths: Tensor,
    receivers: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``sum grad coefficients`` in the sums and the waves."""
    own, other = (form_factors(waves[:, 0], window, w) for w in (widths, receivers))
    rho = (sums * own[:, None, :, None]).sum(2)
    twice = 2 * waves[:, 1, None]
    d_rho = twice[..., None] * (grad * other[:, None, :, None]).sum(2)
    d_sums = d_rho[:, :, None] * own[:, None, :, None]
    received = (grad * rho[:, :, None]).sum((1, 3)) * other
    d_square = (d_sums * sums).sum((1, 3)) * widths**2
    d_square = d_square.sum(1) + (twice * received * receivers**2).sum(1)
    return d_sums, torch.stack((-0.5 * d_square, 2 * received.sum(1)), 1)
