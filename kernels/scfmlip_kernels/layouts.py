"""Triton helper: where a matrix that enters a product of matrices is computed."""

# launches do not type-check
# pyright: reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def made_once(x):
    """
    ``x`` itself, a matrix that is computed from loaded numbers for a product of matrices, or from a product.

    Without it the compiler computes x in the layout of the product, where several threads hold the same
    numbers: two to eight times the work, and registers that spill. It moves no change of layout past a sum
    along an axis, here one of a single number.
    """
    return tl.sum(x[:, :, None], 2)
