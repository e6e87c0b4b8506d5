"""
Spherical harmonics of the directions of vectors, the derivative of a weighted sum of them, and that along
directions.

The source is generated for each l_max: the polynomials of `polynomials` without a loop. Grid: blocks of
vectors. No atomics. A vector's harmonics are neighbours in memory, so that a block writes whole lines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import triton
from torch import Tensor

from ..codegen import SourceWriter, kernel_of
from ..tuned import compiler_options
from .polynomials import columns, legendre_derivative, scale

_BLOCK = 128

_HEAD = """
def kernel({arguments}, n_vectors, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_vectors
    vector = vectors_ptr + row * stride
    y = tl.load(vector, mask=inside, other=0.0)
    z = tl.load(vector + 1, mask=inside, other=0.0)
    x = tl.load(vector + 2, mask=inside, other=0.0)
    square = x * x + y * y + z * z
    there = square > 0
    square = tl.where(there, square, square + 1.0)
    if vectors_ptr.dtype.element_ty == tl.float64:
        inverse = 1.0 / tl.sqrt(square)
    else:
        inverse = 1.0 / tl.sqrt_rn(square)
    x = x * inverse
    y = y * inverse
    z = z * inverse
"""


def _polynomial(coefficients: tuple[float, ...]) -> str:
    """A polynomial of z by Horner's rule in z^2: it is even or odd."""
    powers = [k for k, c in enumerate(coefficients) if c]
    text = repr(coefficients[powers[-1]])
    for k in reversed(powers[:-1]):
        text = f"({text} * zz + {coefficients[k]!r})"
    return f"{text} * z" if powers[0] == 1 else text


def _power(m: int, imaginary: bool) -> str:
    """``A_m`` or ``B_m``; empty for 1."""
    return "" if m == 0 else f"{'b' if imaginary else 'a'}{m}"


def _product(*factors: str) -> str:
    return " * ".join(f for f in factors if f)


def _begin(arguments: str, l_max: int) -> SourceWriter:
    out = SourceWriter()
    out.add_block(_HEAD.format(arguments=arguments))
    out.add(1, "zz = z * z")
    if l_max:
        out.add(1, "a1 = x")
        out.add(1, "b1 = y")
    for m in range(2, l_max + 1):
        out.add(1, f"a{m} = x * a{m - 1} - y * b{m - 1}")
        out.add(1, f"b{m} = x * b{m - 1} + y * a{m - 1}")
    return out


@lru_cache(maxsize=64)
def values_kernel(l_max: int) -> Any:
    """The kernel of the values."""
    out = _begin("vectors_ptr, out_ptr", l_max)
    out.add(1, f"out = out_ptr + row * {(l_max + 1) ** 2}")
    for column, (l, m) in enumerate(columns(l_max)):
        n = abs(m)
        if l == 0:
            out.add(1, "tl.store(out, tl.where(inside, 1.0, x), mask=inside)")
            continue
        factors = (repr(scale(l, n)), _power(n, m < 0), f"({_polynomial(legendre_derivative(l, n))})")
        out.add(1, f"value = tl.where(there, {_product(*factors)}, x)")
        out.add(1, f"tl.store(out + {column}, value, mask=inside)")
    return kernel_of(out.source(), "spherical_harmonics", ("n_vectors", "stride"))


@lru_cache(maxsize=64)
def gradient_kernel(l_max: int) -> Any:
    """The kernel of the derivative of a weighted sum."""
    out = _begin("vectors_ptr, grad_ptr, out_ptr", l_max)
    out.add(1, f"grad = grad_ptr + row * {(l_max + 1) ** 2}")
    for axis in "xyz":
        out.add(1, f"d{axis} = tl.zeros_like(x)")
    for column, (l, m) in enumerate(columns(l_max)):
        if l == 0:
            continue
        n = abs(m)
        out.add(1, f"weight = {scale(l, n)!r} * tl.load(grad + {column}, mask=inside, other=0.0)")
        if n < l:
            slope = f"({_polynomial(legendre_derivative(l, n + 1))})"
            out.add(1, f"dz += {_product('weight', _power(n, m < 0), slope)}")
        if n:
            out.add(1, f"weight = {n}.0 * weight * ({_polynomial(legendre_derivative(l, n))})")
            real, imaginary = _power(n - 1, False), _power(n - 1, True) if n > 1 else None
            if m > 0:
                out.add(1, f"dx += {_product('weight', real)}")
                if imaginary:
                    out.add(1, f"dy -= weight * {imaginary}")
            else:
                if imaginary:
                    out.add(1, f"dx += weight * {imaginary}")
                out.add(1, f"dy += {_product('weight', real)}")
    out.add(1, "along = dx * x + dy * y + dz * z")
    out.add(1, "out = out_ptr + row * 3")
    for place, axis in enumerate("yzx"):
        out.add(1, f"value = tl.where(there, (d{axis} - along * {axis}) * inverse, x)")
        out.add(1, f"tl.store(out + {place}, value, mask=inside)")
    return kernel_of(out.source(), "spherical_harmonics_gradient", ("n_vectors", "stride"))


@lru_cache(maxsize=64)
def tangent_kernel(l_max: int) -> Any:
    """The kernel of the derivative along directions."""
    out = _begin("vectors_ptr, along_ptr, out_ptr", l_max)
    out.add(1, f"out = out_ptr + row * {(l_max + 1) ** 2}")
    for place, axis in enumerate("yzx"):
        out.add(1, f"t{axis} = tl.load(along_ptr + row * 3 + {place}, mask=inside, other=0.0)")
    out.add(1, "along = tx * x + ty * y + tz * z")
    for axis in "xyz":
        out.add(1, f"t{axis} = tl.where(there, (t{axis} - along * {axis}) * inverse, x * 0.0)")
    for column, (l, m) in enumerate(columns(l_max)):
        n, terms = abs(m), []
        if l == 0:
            out.add(1, "tl.store(out, x * 0.0, mask=inside)")
            continue
        if n < l:
            slope = f"({_polynomial(legendre_derivative(l, n + 1))})"
            terms.append(_product("tz", _power(n, m < 0), slope))
        if n:
            real, imaginary = _power(n - 1, False), _power(n - 1, True) if n > 1 else ""
            first, second, sign = ("tx", "ty", "-") if m > 0 else ("ty", "tx", "+")
            inner = _product(first, real) + (f" {sign} {second} * {imaginary}" if imaginary else "")
            terms.append(f"{n}.0 * ({inner}) * ({_polynomial(legendre_derivative(l, n))})")
        out.add(1, f"value = {scale(l, n)!r} * ({' + '.join(terms)})")
        out.add(1, f"tl.store(out + {column}, value, mask=inside)")
    return kernel_of(out.source(), "spherical_harmonics_tangent", ("n_vectors", "stride"))


def launch_tangent(vectors: Tensor, along: Tensor, l_max: int) -> Tensor:
    """``[n, (l_max + 1)^2]``; contiguous arguments, vectors with dense rows."""
    out = vectors.new_empty((len(vectors), (l_max + 1) ** 2))
    if len(vectors):
        tangent_kernel(l_max)[(triton.cdiv(len(vectors), _BLOCK),)](
            vectors_ptr=vectors,
            along_ptr=along,
            out_ptr=out,
            n_vectors=len(vectors),
            stride=vectors.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, vectors),
        )
    return out


def launch_spherical_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """``[n, (l_max + 1)^2]`` of vectors with dense rows."""
    out = vectors.new_empty((len(vectors), (l_max + 1) ** 2))
    if len(vectors):
        values_kernel(l_max)[(triton.cdiv(len(vectors), _BLOCK),)](
            vectors_ptr=vectors,
            out_ptr=out,
            n_vectors=len(vectors),
            stride=vectors.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, vectors),
        )
    return out


def launch_gradient(vectors: Tensor, grad: Tensor, l_max: int) -> Tensor:
    """``[n, 3]``; contiguous arguments, vectors with dense rows."""
    out = vectors.new_empty(vectors.shape)
    if len(vectors):
        gradient_kernel(l_max)[(triton.cdiv(len(vectors), _BLOCK),)](
            vectors_ptr=vectors,
            grad_ptr=grad,
            out_ptr=out,
            n_vectors=len(vectors),
            stride=vectors.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, vectors),
        )
    return out
