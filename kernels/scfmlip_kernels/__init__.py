"""Tensor-level operators: Triton on a GPU, fast PyTorch elsewhere. No atoms, units or models in here."""

from .block_linear import block_linear
from .block_linear.maps import Block, BlockMap, BlockPath
from .cell_inverse import cell_inverse
from .channelwise_conv import channelwise_conv
from .channelwise_conv.edges import EdgeOrder, sort_edges
from .channelwise_conv.product import ChannelwiseProduct, ProductPath
from .charge_solve import charge_solve
from .charge_solve.op import ChargeSolve
from .close_charges import close_charges
from .columns import take_columns
from .conjugate_move import conjugate_move
from .conjugate_move.op import conjugate_turn
from .dispatch import backend
from .edge_vectors import edge_vectors
from .fsai_rows import fsai_rows
from .gated import gated
from .gated.description import Gate
from .gaussian_pairs import gaussian_pairs
from .gaussian_pairs.kernel import pair_tiles
from .grouped_dot import grouped_dot
from .grouped_dot.op import grouped_scale
from .indexed_linear import indexed_linear
from .indexed_linear.groups import SpeciesOrder, sort_species
from .lattice import LatticeGrid, build_lattice_grid
from .lattice_field import lattice_field
from .listed_pairs import listed_pairs
from .listed_pairs.pairs import PairList, sort_pairs
from .mesh import MeshGrid, MeshPlaces, build_mesh_grid, mesh_values, mesh_waves, place_atoms
from .mesh_gather import mesh_gather
from .mesh_spread import mesh_spread
from .norm_network import norm_network
from .norm_network.description import NormNetwork
from .polynomial_field import polynomial_field
from .polynomial_field.op import polynomial_moments
from .pseudo_inverse import pseudo_inverse
from .radial_basis import radial_basis
from .row_form import row_form
from .row_form.op import row_form_sums
from .row_form.terms import RowForm
from .segments import segment_expand, segment_sum
from .slab_cell import slab_cell
from .slab_cell.op import slab_strengths
from .spherical_harmonics import spherical_harmonics
from .structure_factor import structure_factor
from .symmetric_contraction import symmetric_contraction
from .symmetric_contraction.polynomial import SymmetricPolynomial
from .wave_weights import wave_weights
from .wave_weights.op import wave_coefficients, wave_energies

__all__ = [
    "Block",
    "BlockMap",
    "BlockPath",
    "ChannelwiseProduct",
    "ChargeSolve",
    "EdgeOrder",
    "Gate",
    "LatticeGrid",
    "MeshGrid",
    "MeshPlaces",
    "NormNetwork",
    "PairList",
    "ProductPath",
    "RowForm",
    "SpeciesOrder",
    "SymmetricPolynomial",
    "backend",
    "block_linear",
    "build_lattice_grid",
    "build_mesh_grid",
    "cell_inverse",
    "channelwise_conv",
    "charge_solve",
    "close_charges",
    "conjugate_move",
    "conjugate_turn",
    "edge_vectors",
    "fsai_rows",
    "gated",
    "gaussian_pairs",
    "grouped_dot",
    "grouped_scale",
    "indexed_linear",
    "lattice_field",
    "listed_pairs",
    "mesh_gather",
    "mesh_spread",
    "mesh_values",
    "mesh_waves",
    "norm_network",
    "pair_tiles",
    "place_atoms",
    "polynomial_field",
    "polynomial_moments",
    "pseudo_inverse",
    "radial_basis",
    "row_form",
    "row_form_sums",
    "segment_expand",
    "segment_sum",
    "slab_cell",
    "slab_strengths",
    "sort_edges",
    "sort_pairs",
    "sort_species",
    "spherical_harmonics",
    "structure_factor",
    "symmetric_contraction",
    "take_columns",
    "wave_coefficients",
    "wave_energies",
    "wave_weights",
]
