"""Sines of kernels against those of extended precision."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from scfmlip_kernels.sines import cosine_sine

pytestmark = pytest.mark.interpreter


@triton.jit
def _kernel(angle_ptr, out_ptr, n, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    cos, sin = cosine_sine(tl.load(angle_ptr + place, mask=place < n, other=0.0))
    tl.store(out_ptr + place, cos, mask=place < n)
    tl.store(out_ptr + n + place, sin, mask=place < n)


def both(angles, device):
    out = angles.new_empty((2, len(angles)), device=device)
    _kernel[(1,)](angles.to(device), out, len(angles), triton.next_power_of_2(len(angles)))
    return out.cpu()


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53)])
@pytest.mark.parametrize("size", [1e-3, 3.0, 200.0, 1e4, 1e5])
def test_sines(size, dtype, last, generator, device):
    """A unit or two in the last place, of the result or of a hundredth of the angle's rounding."""
    angles = size * (2 * torch.rand(500, generator=generator, dtype=torch.float64) - 1)
    # close to where sines and cosines are 0 and change their polynomial
    quarters = torch.arange(-20, 21, dtype=torch.float64) * torch.pi / 4
    angles = torch.cat((angles, quarters, quarters * (1 + last))).to(dtype)
    exact = angles.numpy().astype(np.longdouble)
    want = np.stack((np.cos(exact), np.sin(exact)))
    got = both(angles, device).numpy()
    error = np.abs(got - want)
    allowed = last * (2 * np.abs(want) + 0.01 * np.abs(exact))
    assert np.all(error <= allowed + np.finfo(got.dtype).smallest_normal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sines_of_what_has_none(dtype, device):
    """No number, or infinite: NaN. Where the last bit of an angle is turns, something between -1 and 1."""
    angles = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e7, -3e15, 1e30], dtype=dtype)
    with np.errstate(invalid="ignore"):  # the interpreter's arithmetic is numpy's
        found = both(angles, device)
    assert found[:, :3].isnan().all()
    assert (found[:, 3:].abs() <= 1).all()
