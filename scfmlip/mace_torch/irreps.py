"""
e3nn linear maps on features held as one contiguous ``[n, 2 l + 1, mul]`` array per irrep.

In this form a linear map is one matrix product over channels, and consecutive maps can be multiplied in the
cheaper order.
"""

from __future__ import annotations

from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from torch import Tensor


def to_blocks(x: Tensor, irreps: o3.Irreps, layout: str = "mul_ir") -> list[Tensor]:
    """Split ``[n, irreps.dim]`` into ``[n, dim, mul]`` per irrep."""
    out = []
    for (mul, ir), part in zip(irreps, irreps.slices(), strict=True):
        block = x[:, part]
        if layout == "mul_ir":
            out.append(block.unflatten(1, (mul, ir.dim)).transpose(1, 2).contiguous())
        else:
            out.append(block.unflatten(1, (ir.dim, mul)).contiguous())
    return out


def from_blocks(blocks: list[Tensor], layout: str = "mul_ir") -> Tensor:
    """The inverse of `to_blocks`."""
    if layout == "mul_ir":
        blocks = [b.transpose(1, 2) for b in blocks]
    return torch.cat([b.flatten(1) for b in blocks], 1)


def linear_paths(linear: Any) -> list[tuple[int, int, Tensor]]:
    """``(block in, block out, matrix [mul_in, mul_out])`` of an ``o3.Linear``, including normalisation."""
    out, offset = [], 0
    for ins in linear.instructions:
        if ins.i_in >= 0:
            mul_in, mul_out = ins.path_shape
            matrix = linear.weight[offset : offset + mul_in * mul_out].view(mul_in, mul_out)
            out.append((ins.i_in, ins.i_out, matrix * ins.path_weight))
            offset += mul_in * mul_out
    return out


def linear_biases(linear: Any) -> dict[int, Tensor]:
    """``[mul]`` bias of each scalar block of an ``o3.Linear`` that has one."""
    out, offset = {}, 0
    for ins in linear.instructions:
        if ins.i_in < 0:
            size = ins.path_shape[0]
            out[ins.i_out] = linear.bias[offset : offset + size]
            offset += size
    return out


def apply_linear(linear: Any, blocks: list[Tensor]) -> list[Tensor]:
    """Apply an ``o3.Linear`` to blocks."""
    n = len(blocks[0])
    terms: list[list[Tensor]] = [[] for _ in linear.irreps_out]
    for i, o, matrix in linear_paths(linear):
        terms[o].append(blocks[i] @ matrix)
    for o, bias in linear_biases(linear).items():
        terms[o].append(bias.expand(n, 1, -1))
    return [
        add(t, blocks[0], (n, ir.dim, mul)) for t, (mul, ir) in zip(terms, linear.irreps_out, strict=True)
    ]


def add(terms: list[Tensor], like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum of the terms; zeros of ``shape`` if there are none."""
    if not terms:
        return like.new_zeros(shape)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def chain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``x @ first @ second`` in the cheaper order; ``x [n, d, a]``, ``first [a, b]``, ``second [b, c]``."""
    rows = x.shape[0] * x.shape[1]
    a, b = first.shape
    c = second.shape[1]
    if rows * b * (a + c) <= a * b * c + rows * a * c:
        return (x @ first) @ second
    return x @ (first @ second)
