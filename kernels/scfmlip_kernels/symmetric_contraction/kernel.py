"""
Symmetric contractions ``out[n, c, m] = sum_t a_t w[z_n, t, c] prod_i x[n, c, i]`` by generated kernels.

Grid of values and of gradients in x: (atoms, channel blocks). One program loads the components and the
weights of the atom's species, and runs the polynomial as straight-line code (`generate`). Grid of the
weights'
gradients: (tiles of atoms of one species, channel blocks). Each program loops over its atoms with the sums of
all weights in registers; a second kernel adds the tiles of each species in order. There are no atomics, and
no cache key depends on the number of atoms.

Batatia et al., arXiv:2206.07697 (2022), eqs. 10 and 11.
"""

from typing import Any

import triton
from torch import Tensor

from ..indexed_linear.tiles import most_tiles, sum_tiles, tile_constants
from ..tuned import compiler_options, tuned
from .generate import Kind, kernel, n_pieces
from .polynomial import polynomial_of


def _launch(kind: Kind, text: str, n_programs: int, wanted: int, **arguments: Any) -> None:
    """Run all kernels of a polynomial with the same arguments."""
    x: Tensor = arguments["x_ptr"]
    if not x.numel():
        return
    options = tuned("symmetric_contraction", x.device, x.dtype)
    most, n_channels = options["terms_inputs" if kind == "inputs" else "terms"], x.shape[1]
    for piece in range(n_pieces(text, kind, most)):
        kernel(text, kind, most, piece, wanted)[(n_programs, triton.cdiv(n_channels, options["channels"]))](
            **arguments,
            N_CHANNELS=n_channels,
            BLOCK_CHANNELS=options["channels"],
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )


def launch_symmetric_contraction(x: Tensor, weights: Tensor, index: Tensor, text: str) -> Tensor:
    """Compute values; arguments as in `symmetric_contraction`."""
    x, weights, index = x.contiguous(), weights.contiguous(), index.contiguous()
    out = x.new_empty((*x.shape[:2], polynomial_of(text).n_outputs))
    _launch("values", text, len(x), 0, x_ptr=x, weights_ptr=weights, index_ptr=index, out_ptr=out)
    return out


def launch_symmetric_contraction_inputs(
    x: Tensor, weights: Tensor, grad: Tensor, index: Tensor, text: str, wanted: int
) -> Tensor:
    """Derivatives of ``sum out grad`` in the first ``wanted`` components of x."""
    x, weights, grad, index = x.contiguous(), weights.contiguous(), grad.contiguous(), index.contiguous()
    out = x.new_empty((*x.shape[:2], wanted))
    tensors = {"x_ptr": x, "weights_ptr": weights, "grad_ptr": grad, "index_ptr": index, "out_ptr": out}
    _launch("inputs", text, len(x), wanted, **tensors)
    return out


def launch_symmetric_contraction_weights(
    x: Tensor, grad: Tensor, order: Tensor, ptr: Tensor, text: str
) -> Tensor:
    """Derivatives of ``sum out grad`` in the weights; 0 for absent species."""
    x, grad, order = x.contiguous(), grad.contiguous(), order.contiguous()
    n_atoms, n_channels, _ = x.shape
    n_species, n_weights = ptr.shape[0] - 1, polynomial_of(text).n_weights
    if not x.numel() or not n_weights:
        return x.new_zeros((n_species, n_weights, n_channels))
    rows = tuned("symmetric_contraction", x.device, x.dtype)["rows"]
    constants = tile_constants(n_species, rows)
    n_tiles = most_tiles(n_atoms, n_species, rows)
    parts = x.new_empty((n_tiles, n_weights, n_channels))
    tensors = {"x_ptr": x, "grad_ptr": grad, "order_ptr": order, "ptr_ptr": ptr, "out_ptr": parts}
    _launch("weights", text, n_tiles, 0, **tensors, n_species=n_species, **constants)
    return sum_tiles(parts, ptr, constants)
