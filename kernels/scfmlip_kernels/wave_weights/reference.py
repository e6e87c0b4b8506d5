"""Plain PyTorch definition of the weights of waves and their sums; the tests' source of truth."""

import math

import torch
from torch import Tensor


def wave_weights_reference(
    inverse: Tensor,
    volume: Tensor,
    miller: Tensor,
    system: Tensor,
    weight: Tensor,
    height: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """One wave after another; arguments as in `wave_weights`."""
    rows = []
    for n, s, w in zip(miller.double().unbind(0), system.tolist(), weight.unbind(0), strict=True):
        k = 2 * math.pi * inverse[s] @ n
        square = k @ k
        if float(w) == 0.0:
            rows.append(torch.stack((square, 0 * square)))
            continue
        c = w / (volume[s] * square)
        if height is not None and axis is not None and float(height[s]) > 0:
            a = int(axis[s])
            m, across = int(n[a]), sum(float(n[i]) ** 2 for i in range(3) if i != a)
            if across:
                lateral = torch.sqrt(square - (2 * math.pi * m / height[s]) ** 2)
                c = c * (1 - (-1) ** m * torch.exp(-lateral * height[s] / 2))
        rows.append(torch.stack((square, c)))
    return torch.stack(rows) if rows else weight.new_zeros((0, 2))


def wave_density_reference(
    sums: Tensor, waves: Tensor, window: Tensor | None, widths: tuple[float, ...]
) -> Tensor:
    """``[n_points, n_channels]`` complex density of each wave."""
    b = torch.ones_like(waves[:, 0]) if window is None else window
    total = 0.0
    for s, width in enumerate(widths):
        f = b * torch.exp(-(width**2) * waves[:, 0] / 2)
        total = total + f[:, None] * torch.complex(sums[:, :, s, 0], sums[:, :, s, 1])
    assert isinstance(total, Tensor)
    return total


def wave_energies_reference(
    sums: Tensor, waves: Tensor, window: Tensor | None, widths: tuple[float, ...]
) -> Tensor:
    """``[n_points, n_channels]``; arguments as in `wave_energies`."""
    rho = wave_density_reference(sums, waves, window, widths)
    return waves[:, 1, None] * (rho.real**2 + rho.imag**2)


def wave_coefficients_reference(
    sums: Tensor,
    waves: Tensor,
    window: Tensor | None,
    widths: tuple[float, ...],
    receivers: tuple[float, ...],
) -> Tensor:
    """``[n_points, n_channels, n_receivers, 2]``; arguments as in `wave_coefficients`."""
    rho, b = wave_density_reference(sums, waves, window, widths), torch.ones_like(waves[:, 0])
    b = b if window is None else window
    parts = []
    for width in receivers:
        f = 2 * waves[:, 1] * b * torch.exp(-(width**2) * waves[:, 0] / 2)
        parts.append(torch.stack((f[:, None] * rho.real, f[:, None] * rho.imag), -1))
    return torch.stack(parts, 2)
