"""Triton helpers that the two lattice kernels share, and the format of their phases."""

# launches do not type-check
# pyright: reportArgumentType=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..identity import ByIdentity
from ..sines import quarter_turned
from ..tuned import compiler_options


@triton.jit
def wave(phase, dtype: tl.constexpr):
    """
    Cosine and sine of ``2 pi phase``.

    ``phase`` is in turns: an int32 in units of 2^-32 turn, whose overflow wraps to the same angle, or
    a float64. Reduced exactly to a quarter turn around 0, then two short polynomials: no branch, no
    table, no slow path for large arguments.
    """
    if phase.dtype == tl.int32:
        quarter = (phase + 536870912) >> 30
        rest = phase - (quarter << 30)
        x = rest.to(dtype) * 1.4629180792671596e-09  # 2 pi / 2^32
    else:
        turn = phase - tl.floor(phase + 0.5)
        nearest = tl.floor(4.0 * turn + 0.5)
        quarter = nearest.to(tl.int32)
        x = ((turn - 0.25 * nearest) * 6.283185307179586).to(dtype)
    return quarter_turned(x, quarter, dtype)


@triton.constexpr_function
def monomial_index(a, b, c):
    """Index of exponents (a, b, c) in `monomials`."""
    degree = a + b + c
    rest = b + c
    return degree * (degree + 1) * (degree + 2) // 6 + rest * (rest + 1) // 2 + c


_kept: ByIdentity[Tensor] = ByIdentity(8)


def to_turns(frac: Tensor, dtype: torch.dtype) -> Tensor:
    """
    Fractional coordinates in the kernels' format, ``[3, n_atoms]``; made once for a geometry.

    float32 work gets 32-bit fixed-point turns (resolution 2.3e-10 of a lattice vector, better than
    float32 Cartesian coordinates resolve), float64 work gets float64.
    """
    return _kept.get((frac,), dtype, lambda: _to_turns(frac, dtype))


def _to_turns(frac: Tensor, dtype: torch.dtype) -> Tensor:
    wrapped = (frac - frac.round()).T.contiguous()
    if dtype == torch.float64:
        return wrapped
    fixed = (wrapped * 2.0**32).round().to(torch.int64)
    return ((fixed + 2**31) % 2**32 - 2**31).to(torch.int32)


@triton.jit
def _forces_kernel(
    own_ptr,  # [n_atoms, n_channels, n_own]
    field_ptr,  # [n_atoms, n_channels, n_field]
    shifts_ptr,  # [3, n_own] int64 monomial of the field that a derivative leads to
    out_ptr,  # [n_atoms, 3] float64
    n_results,
    n_channels,
    n_own,
    n_field,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    atom = place // 3
    axis = place % 3
    total = tl.zeros((BLOCK,), tl.float64)
    for channel in range(n_channels):
        row = atom * n_channels + channel
        for m in range(n_own):
            shift = tl.load(shifts_ptr + axis * n_own + m, mask=inside, other=0)
            own = tl.load(own_ptr + row * n_own + m, mask=inside, other=0.0).to(tl.float64)
            total += own * tl.load(field_ptr + row * n_field + shift, mask=inside, other=0.0).to(tl.float64)
    tl.store(out_ptr + place, total * FACTOR, mask=inside)


def launch_forces(own: Tensor, field: Tensor, shifts: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """``[n_atoms, 3]``: ``factor sum own field`` at the shifted monomials, summed in float64."""
    n_atoms, n_own = len(own), own.shape[-1]
    out = own.new_empty((n_atoms, 3), dtype=dtype)
    if n_atoms:
        _forces_kernel[(triton.cdiv(3 * n_atoms, 128),)](
            own_ptr=own.contiguous(),
            field_ptr=field.contiguous(),
            shifts_ptr=shifts,
            out_ptr=out,
            n_results=3 * n_atoms,
            n_channels=math.prod(own.shape[1:-1]),
            n_own=n_own,
            n_field=field.shape[-1],
            FACTOR=factor,
            BLOCK=128,
            **compiler_options(4, 1, own),
        )
    return out


@triton.jit
def _along_kernel(
    x_ptr,  # [n_rows, n_x]
    directions_ptr,  # [n_atoms, 3]
    places_ptr,  # [3, n_out] int64 monomial of x that each axis takes, or -1
    out_ptr,  # [n_rows, n_out]
    n_results,
    n_channels,
    n_x,
    n_out,
    stride_directions_atom,
    stride_directions_axis,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_out
    monomial = place % n_out
    direction = directions_ptr + (row // n_channels) * stride_directions_atom
    total = tl.zeros((BLOCK,), tl.float64)
    for axis in range(3):
        source = tl.load(places_ptr + axis * n_out + monomial, mask=inside, other=-1)
        valid = source >= 0
        along = tl.load(direction + axis * stride_directions_axis, mask=inside, other=0.0).to(tl.float64)
        total += along * tl.load(x_ptr + row * n_x + source, mask=valid, other=0.0).to(tl.float64)
    tl.store(out_ptr + place, total * FACTOR, mask=inside)


def _launch_along(x: Tensor, directions: Tensor, places: Tensor, factor: float) -> Tensor:
    n_out = places.shape[1]
    out = x.new_empty((*x.shape[:-1], n_out))
    if out.numel():
        _along_kernel[(triton.cdiv(out.numel(), 128),)](
            x_ptr=x.contiguous(),
            directions_ptr=directions,
            places_ptr=places,
            out_ptr=out,
            n_results=out.numel(),
            n_channels=math.prod(x.shape[1:-1]),
            n_x=x.shape[-1],
            n_out=n_out,
            stride_directions_atom=directions.stride(0),
            stride_directions_axis=directions.stride(1),
            FACTOR=factor,
            BLOCK=128,
            **compiler_options(4, 1, x),
        )
    return out


def launch_shifted(field: Tensor, directions: Tensor, shifts: Tensor, factor: float) -> Tensor:
    """``factor sum_axis direction field`` at the shifted monomials, summed in float64."""
    return _launch_along(field, directions, shifts, factor)


def launch_raised(moments: Tensor, directions: Tensor, lowered: Tensor, factor: float) -> Tensor:
    """``factor sum_axis direction moment`` at the lowered monomials, summed in float64."""
    return _launch_along(moments, directions, lowered, factor)
