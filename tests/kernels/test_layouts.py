"""Matrices that are computed where they were loaded are the same matrices."""

import pytest
import torch
import triton
import triton.language as tl

from scfmlip_kernels.layouts import made_once

pytestmark = pytest.mark.interpreter


@triton.jit
def _kernel(x_ptr, y_ptr, out_ptr, product_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + row * COLUMNS + column)
    y = tl.load(y_ptr + tl.arange(0, COLUMNS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :])
    made = made_once(x * x - 0.5 * x)
    tl.store(out_ptr + row * COLUMNS + column, made)
    place = row * ROWS + tl.arange(0, ROWS)[None, :]
    tl.store(product_ptr + place, tl.dot(made, y, input_precision="ieee", out_dtype=x_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 32), (32, 16)])
def test_made_once(rows, columns, dtype, generator, device):
    x, y = (
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((rows, columns), (columns, rows))
    )
    x[0, 0] = float("nan")
    x[1, 1] = -0.0
    out, product = (torch.zeros(rows, n, dtype=dtype, device=device) for n in (columns, rows))
    _kernel[(1,)](x.to(device), y.to(device), out, product, rows, columns)
    want = x * x - 0.5 * x
    assert torch.equal(out.cpu().nan_to_num(7.0), want.nan_to_num(7.0))
    scale = float(want[1:].abs().max() * y.abs().max()) * columns
    error = float((product.cpu()[1:] - (want @ y)[1:]).abs().max())
    assert error < {torch.float32: 1e-7, torch.float64: 1e-16}[dtype] * scale
