"""
Symmetric contractions ``out[n, c, m] = sum_t a_t w[z_n, t, c] prod_i x[n, c, i]`` by generated kernels.

Grid of values and of gradients in x: (atoms, channel blocks); one program loads the components, the weights
of the atom's species and runs the polynomial as straight-line code (`generate`). Gradients of the weights:
(tiles of atoms of one species, channel blocks), atoms in a loop with all weights' sums in registers; a second
kernel adds the tiles of each species in order. Nothing is atomic, and no cache key holds a number of atoms.

Batatia et al., arXiv:2206.07697 (2022), eqs. 10 and 11.
"""

import triton
from torch import Tensor

from ..indexed_linear.tiles import most_tiles, sum_tiles, tile_constants
from ..tuned import compiler_options, tuned
from .generate import kernel, n_pieces
from .polynomial import polynomial_of


def launch_symmetric_contraction(x: Tensor, weights: Tensor, index: Tensor, key: str) -> Tensor:
    """Values; arguments as in `symmetric_contraction`."""
    x, weights, index = x.contiguous(), weights.contiguous(), index.contiguous()
    n_atoms, n_channels, _ = x.shape
    options = tuned("symmetric_contraction", x.device, x.dtype)
    out = x.new_empty((n_atoms, n_channels, polynomial_of(key).n_outputs))
    for piece in range(n_pieces(key, "values") if x.numel() else 0):
        kernel(key, "values", piece)[(n_atoms, triton.cdiv(n_channels, options["channels"]))](
            x_ptr=x,
            weights_ptr=weights,
            index_ptr=index,
            out_ptr=out,
            N_CHANNELS=n_channels,
            BLOCK_CHANNELS=options["channels"],
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return out


def launch_symmetric_contraction_inputs(
    x: Tensor, weights: Tensor, grad: Tensor, index: Tensor, key: str, wanted: int
) -> Tensor:
    """Derivatives of ``sum out grad`` in the first ``wanted`` components of x."""
    x, weights, grad, index = x.contiguous(), weights.contiguous(), grad.contiguous(), index.contiguous()
    n_atoms, n_channels, _ = x.shape
    options = tuned("symmetric_contraction", x.device, x.dtype)
    out = x.new_empty((n_atoms, n_channels, wanted))
    for piece in range(n_pieces(key, "inputs") if x.numel() else 0):
        kernel(key, "inputs", piece, wanted)[(n_atoms, triton.cdiv(n_channels, options["channels"]))](
            x_ptr=x,
            weights_ptr=weights,
            grad_ptr=grad,
            index_ptr=index,
            out_ptr=out,
            N_CHANNELS=n_channels,
            BLOCK_CHANNELS=options["channels"],
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return out


def launch_symmetric_contraction_weights(
    x: Tensor, grad: Tensor, order: Tensor, ptr: Tensor, key: str
) -> Tensor:
    """Derivatives of ``sum out grad`` in the weights; 0 for species that do not occur."""
    x, grad, order = x.contiguous(), grad.contiguous(), order.contiguous()
    n_atoms, n_channels, _ = x.shape
    n_species, n_weights = ptr.shape[0] - 1, polynomial_of(key).n_weights
    if not x.numel() or not n_weights:
        return x.new_zeros((n_species, n_weights, n_channels))
    options = tuned("symmetric_contraction", x.device, x.dtype)
    constants = tile_constants(n_species, options["rows"])
    n_tiles = most_tiles(n_atoms, n_species, options["rows"])
    parts = x.new_empty((n_tiles, n_weights, n_channels))
    for piece in range(n_pieces(key, "weights")):
        kernel(key, "weights", piece)[(n_tiles, triton.cdiv(n_channels, options["channels"]))](
            x_ptr=x,
            grad_ptr=grad,
            order_ptr=order,
            ptr_ptr=ptr,
            out_ptr=parts,
            n_species=n_species,
            N_CHANNELS=n_channels,
            BLOCK_CHANNELS=options["channels"],
            **constants,
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return sum_tiles(parts, ptr, constants)
