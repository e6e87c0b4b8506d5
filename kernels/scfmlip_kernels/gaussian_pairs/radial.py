"""Radial derivatives ``((1/r) d/dr)^n f`` of the interaction of two Gaussians."""

import math
from typing import Any

import torch
from torch import Tensor

# Below this argument the upward recursion loses digits and the series takes over.
SERIES_BELOW = 2.0
SERIES_TERMS = {torch.float32: 14, torch.float64: 26}


def _series(x: Tensor, decay: Tensor, order: int, n_terms: int) -> list[Tensor]:
    """Boys functions F_0 .. F_order for small arguments: a series for the last, then downward recursion."""
    term = torch.full_like(x, 1.0 / (2 * order + 1))
    top = term.clone()
    for k in range(1, n_terms):
        term = term * x * (2.0 / (2 * order + 2 * k + 1))
        top = top + term
    values = [top * decay]
    for n in range(order, 0, -1):
        values.append((2 * x * values[-1] + decay) / (2 * n - 1))
    return values[::-1]


def gaussian_radial(r: Tensor, alpha: float | Tensor, order: int) -> list[Tensor]:
    """
    ``((1/r) d/dr)^n`` of ``erf(alpha r) / r`` for n = 0 .. order, accurate for every r >= 0.

    ``alpha`` may be one number for each distance. Not differentiable, see `gaussian_interaction`.

    Uses Boys functions: ``(-1)^n 2 alpha / sqrt(pi) (2 alpha^2)^n F_n(alpha^2 r^2)`` with
    ``F_n(x) = int_0^1 t^2n e^(-x t^2) dt`` (Helgaker, Jorgensen, Olsen, Molecular
    Electronic-Structure Theory, 2000, section 9.8).
    """
    x = (alpha * r) ** 2
    decay = torch.exp(-x)
    safe = x.clamp_min(SERIES_BELOW)
    root = safe.sqrt()
    boys = [0.5 * math.sqrt(math.pi) * torch.erf(root) / root]
    large_decay = torch.exp(-safe)
    for n in range(order):
        boys.append(((2 * n + 1) * boys[n] - large_decay) / (2 * safe))
    small = torch.nonzero(x.flatten() < SERIES_BELOW).squeeze(1)
    if len(small):
        values = _series(x.flatten()[small], decay.flatten()[small], order, SERIES_TERMS[r.dtype])
        for n, value in enumerate(values):
            boys[n].view(-1)[small] = value
    scale = 2 * alpha / math.sqrt(math.pi)
    return [b * (scale * (-2 * alpha**2) ** n) for n, b in enumerate(boys)]


class _Interaction(torch.autograd.Function):
    """``((1/r) d/dr)^n f`` as a function of ``r^2`` and the variance, closed under differentiation."""

    @staticmethod
    def forward(square: Tensor, variance: Tensor, n: int) -> Tensor:
        return gaussian_radial(square.sqrt(), (2 * variance).rsqrt(), n)[n]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.n = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        square, variance = ctx.saved_tensors
        (grad,), n = grad_outputs, ctx.n
        first = _Interaction.apply(square, variance, n + 1)
        d_square = 0.5 * grad * first if ctx.needs_input_grad[0] else None
        d_variance = None
        if ctx.needs_input_grad[1]:  # df/dv = 1/2 Laplacian f, of Gaussians
            second = _Interaction.apply(square, variance, n + 2)
            d_variance = 0.5 * grad * ((2 * n + 3) * first + square * second)
        return d_square, d_variance, None


def gaussian_interaction(square: Tensor, variance: Tensor) -> Tensor:
    """
    ``erf(r / sqrt(2 v)) / r`` of each pair, differentiable any number of times.

    Args:
        square: ``[...]`` squared distances r^2.
        variance: The same shape, v: the sum of the squared widths of two Gaussians.
    """
    return _Interaction.apply(square, variance, 0)


def softened_radial(r: Tensor, alpha: float, softening: float, order: int) -> list[Tensor]:
    """``((1/r) d/dr)^n`` of ``erf(alpha r) / (r + softening)`` for n = 0 .. order, order <= 3."""
    if order > 3:
        raise NotImplementedError(f"softened pair sums have derivatives up to order 3, not {order}")
    s = 1 / (r + softening)
    g = torch.exp(-((alpha * r) ** 2)) * (2 * alpha / math.sqrt(math.pi))
    e = [torch.erf(alpha * r), g, -2 * alpha**2 * r * g, (4 * alpha**4 * r**2 - 2 * alpha**2) * g]
    inv = [s, -(s**2), 2 * s**3, -6 * s**4]
    # Leibniz rule for the product e(r) * 1 / (r + softening)
    f = [
        sum(
            (math.comb(n, m) * e[m] * inv[n - m] for m in range(1, n + 1)),
            start=e[0] * inv[n],
        )
        for n in range(order + 1)
    ]
    out = [f[0]]
    if order >= 1:
        out.append(f[1] / r)
    if order >= 2:
        out.append((f[2] - f[1] / r) / r**2)
    if order >= 3:
        out.append((f[3] - 3 * f[2] / r + 3 * f[1] / r**2) / r**3)
    return out
