"""Plain PyTorch definition of the spherical harmonics; the tests' source of truth."""

import math

import torch
from torch import Tensor


def _associated(l: int, m: int, z: Tensor) -> Tensor:
    """``d^m P_l / dZ^m`` by the recursion in l."""
    below, found = torch.zeros_like(z), torch.full_like(z, math.prod(range(1, 2 * m, 2)))
    for n in range(m + 1, l + 1):
        below, found = found, ((2 * n - 1) * z * found - (n + m - 1) * below) / (n - m)
    return found


def spherical_harmonics_reference(vectors: Tensor, l_max: int) -> Tensor:
    """
    In angles: ``c P(cos theta) sin(theta)^m cos(m phi)``, about the second axis.

    Args:
        vectors: ``[n, 3]``, none of them 0 or along the second axis.
        l_max: Highest l.

    Returns:
        ``[n, (l_max + 1)^2]``.
    """
    y, z, x = vectors.double().unbind(1)
    cos = z / torch.sqrt(x * x + y * y + z * z)
    sin, phi, found = torch.sqrt(1 - cos * cos), torch.atan2(y, x), []
    for l in range(l_max + 1):
        for m in range(-l, l + 1):
            n = abs(m)
            norm = math.sqrt((2 * l + 1) * math.factorial(l - n) / math.factorial(l + n))
            turn = torch.sin(n * phi) if m < 0 else torch.cos(n * phi)
            found.append((norm if n == 0 else math.sqrt(2) * norm) * _associated(l, n, cos) * sin**n * turn)
    return torch.stack(found, 1)
