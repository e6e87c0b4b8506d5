"""
The correction of slabs as one linear map of a system's low moments, for a GPU.

Moments s of a system about its origin, ``[q, d, second moments / 2]``, give the correction's potential, a
quadratic polynomial with coefficients ``K s``; its energy is ``1/2 s.K s``. K holds products of the normal
and of the height, which the kernel of `slab_strengths` makes of the cell.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from scfmlip_kernels import RowForm, polynomial_field, polynomial_moments, row_form

from ..segments import Segments

_SIZE = 10
# place of a pair of axes among xx, xy, xz, yy, yz, zz
_PAIRS = ((0, 1, 2), (1, 3, 4), (2, 4, 5))
# channels up to which a table of terms is small
MOST_CHANNELS = 16


@lru_cache(maxsize=64)
def _map(n_channels: int, source: float, receivers: tuple[float, ...]) -> RowForm:
    """From moments to polynomials of the potential, for each channel and receiver's width."""
    terms: list[tuple[int, int, int, float]] = []
    for channel in range(n_channels):
        s = channel * _SIZE
        for n, width in enumerate(receivers):
            p = (channel * len(receivers) + n) * _SIZE
            # the Gaussians' own second moments, of the charge and of the receiver
            terms.append((p, s, 0, -0.5 * (source**2 + width**2)))
            terms.append((p, s, 1, -1.0))
            for k in range(6):
                terms.append((p, s + 4 + k, 2 + k, -1.0))
                terms.append((p + 4 + k, s, 2 + k, -1.0))
            for i in range(3):
                terms += [(p + 1 + i, s + 1 + j, 2 + _PAIRS[i][j], 1.0) for j in range(3)]
    return RowForm(n_channels * _SIZE, 8, n_channels * len(receivers) * _SIZE, tuple(terms))


@lru_cache(maxsize=64)
def _half_product(n_channels: int) -> RowForm:
    size = n_channels * _SIZE
    terms = tuple((k // _SIZE, k, k, 0.5) for k in range(size))
    return RowForm(size, size, n_channels, terms)


def low_moments(r: Tensor, moments: Tensor, segments: Segments) -> Tensor:
    """
    Moments about the origins, ``[n_systems, 10 n_channels]``.

    Args:
        r: ``[n_atoms, 3]`` from the origins, float64.
        moments: ``[n_atoms, n_channels, 1, 1 | 4 | 10]`` of one width.
        segments: The system of each atom.
    """
    return segments.sum(polynomial_moments(r, moments[:, :, 0].double())).flatten(1)


def slab_energy(s: Tensor, strengths: Tensor, width: float) -> Tensor:
    """``[n_systems, n_channels]`` eV of moments ``s``; ``strengths [n_systems, 8]``."""
    n_channels = s.shape[1] // _SIZE
    polynomials = row_form(s, _map(n_channels, width, (width,)), strengths)
    return row_form(s, _half_product(n_channels), polynomials)


def slab_field(
    s: Tensor,
    strengths: Tensor,
    width: float,
    receivers: tuple[float, ...],
    rank: int,
    r: Tensor,
    segments: Segments,
) -> Tensor:
    """
    Potential and derivatives, ``[n, n_channels, len(receivers), 1 | 4 | 10]``.

    Args:
        s: ``[n_systems, 10 n_channels]`` moments.
        strengths: ``[n_systems, 8]`` from `slab_strengths`.
        width: Width of the sources, angstrom.
        receivers: Widths of the receivers, angstrom.
        rank: Highest derivative.
        r: ``[n, 3]`` places from the origins of their systems, float64.
        segments: The system of each place.
    """
    n_channels = s.shape[1] // _SIZE
    polynomials = row_form(s, _map(n_channels, width, receivers), strengths)
    each = segments.expand(polynomials).unflatten(1, (n_channels * len(receivers), _SIZE))
    return polynomial_field(r, each, rank).unflatten(1, (n_channels, len(receivers)))


def fits(moments: Tensor) -> bool:
    """Whether multipoles are of one width, and few enough."""
    return (
        moments.shape[2] == 1 and 0 < moments.shape[1] <= MOST_CHANNELS and not torch.compiler.is_compiling()
    )
