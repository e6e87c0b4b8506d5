"""The small kernels that save launches, with their compile-time arguments: see `static_variants`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from scfmlip_kernels.block_linear.kernel import _block_linear_kernel
from scfmlip_kernels.block_linear.kernel_weights import _block_linear_weights_kernel
from scfmlip_kernels.cell_inverse.kernel import _cell_inverse_backward_kernel, _cell_inverse_kernel
from scfmlip_kernels.close_charges.kernel import (
    _close_charges_backward_kernel,
    _close_charges_kernel,
    _close_charges_second_kernel,
)
from scfmlip_kernels.conjugate_move import kernel as conjugate_step
from scfmlip_kernels.conjugate_move.layout import STUCK_BELOW
from scfmlip_kernels.edge_vectors.kernel import _edge_sums_kernel, _edge_vectors_kernel
from scfmlip_kernels.fsai_rows.kernel import _fsai_rows_kernel
from scfmlip_kernels.fsai_rows.kernel import warps_for as fsai_warps
from scfmlip_kernels.gated.kernel import _gated_backward_kernel, _gated_kernel, _gated_second_kernel
from scfmlip_kernels.grouped_dot.kernel import (
    _grouped_dot_backward_kernel,
    _grouped_dot_kernel,
    _grouped_scale_kernel,
)
from scfmlip_kernels.lattice import monomial_count
from scfmlip_kernels.lattice.device import _along_kernel, _forces_kernel
from scfmlip_kernels.mesh.device import splines_kernel
from scfmlip_kernels.norm_network.kernel import (
    _norm_network_backward_kernel,
    _norm_network_kernel,
    block_sizes,
)
from scfmlip_kernels.norm_network.kernel_second import _norm_network_second_kernel
from scfmlip_kernels.polynomial_field.kernel import _polynomial_field_kernel, _polynomial_moments_kernel
from scfmlip_kernels.pseudo_inverse.kernel import _singular_vectors_kernel, warps_for
from scfmlip_kernels.radial_basis.kernel import _radial_basis_kernel
from scfmlip_kernels.row_form.kernel import _row_form_kernel, _row_form_sums_kernel
from scfmlip_kernels.slab_cell.kernel import _slab_cell_kernel, _slab_strengths_kernel
from scfmlip_kernels.spherical_harmonics.kernel import gradient_kernel, tangent_kernel, values_kernel
from scfmlip_kernels.tuned import tuned
from scfmlip_kernels.wave_weights.kernel import _wave_sums_kernel, _wave_weights_kernel

from .static_electrostatics import Variant

_ONE, _FOUR = {"num_warps": 1, "num_stages": 1}, {"num_warps": 4, "num_stages": 1}


def _pointers(kind: str, names: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{kind}" for name in names.split()}


def _sizes(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "i32")


def _linear_maps(dtype: str, real: str) -> Iterator[Variant]:
    parameters = tuned("indexed_linear", torch.device("cpu"), getattr(torch, dtype))
    signature = {
        **_pointers(real, "x weights bias"),
        **_pointers("i64", "order ptr"),
        **_pointers("i32", "tiles paths"),
        **_pointers(real, "scales out"),
        **_sizes("n_rows n_species x_stride out_dim"),
    }
    for species in (False, True):
        constants = {
            "HAS_SPECIES": species,
            "BLOCK_ROWS": parameters["rows"],
            "BLOCK_SPECIES": 16 if species else 1,
            "BLOCK_IN": parameters["in"],
            "BLOCK_OUT": max(16, parameters["out"] // 2),
            "PRECISION": parameters["precision"],
        }
        label = "values, species" if species else "values"
        options = {key: parameters[key] for key in ("num_warps", "num_stages")}
        yield Variant("block_linear", label, dtype, _block_linear_kernel, signature, constants, options)
    signature = {
        **_pointers(real, "x grad"),
        **_pointers("i64", "order ptr"),
        **_pointers("i32", "tiles"),
        **_pointers(real, "scales out"),
        **_sizes("n_rows x_dim out_dim n_weights n_splits"),
    }
    for species in (False, True):
        constants = {
            "BLOCK_IN": parameters["out"],
            "BLOCK_OUT": parameters["out"],
            "BLOCK_SUM": parameters["in"],
            "PRECISION": parameters["precision"],
            **({} if species else {"order_ptr": None, "ptr_ptr": None}),
        }
        label = "weights, species" if species else "weights"
        options = {key: parameters[key] for key in ("num_warps", "num_stages")}
        kernel = _block_linear_weights_kernel
        yield Variant("block_linear", label, dtype, kernel, signature, constants, options)


def _edges(dtype: str, real: str) -> Iterator[Variant]:
    for l_max in (1, 3):
        signature = {**_pointers(real, "vectors out"), **_sizes("n_vectors stride")}
        yield Variant(
            "spherical_harmonics",
            f"values, l_max {l_max}",
            dtype,
            values_kernel(l_max),
            signature,
            {"BLOCK": 128},
            _FOUR,
        )
        signature = {**_pointers(real, "vectors grad out"), **_sizes("n_vectors stride")}
        yield Variant(
            "spherical_harmonics",
            f"gradient, l_max {l_max}",
            dtype,
            gradient_kernel(l_max),
            signature,
            {"BLOCK": 128},
            _FOUR,
        )
        signature = {**_pointers(real, "vectors along out"), **_sizes("n_vectors stride")}
        label, kernel = f"along directions, l_max {l_max}", tangent_kernel(l_max)
        yield Variant("spherical_harmonics", label, dtype, kernel, signature, {"BLOCK": 128}, _FOUR)
    signature = {
        **_pointers(real, "x y frequencies scale reach"),
        **_pointers("i32", "p"),
        **_pointers(real, "grad along_x along_y out"),
        **_sizes("n n_basis x_stride y_stride"),
    }
    for label, unused in (("values", "grad along"), ("derivatives", "along"), ("along lengths", "grad")):
        constants = {
            "SEPARATE": False,
            "DERIVATIVE": "grad" not in unused,
            "ALONG": "along" not in unused,
            "BLOCK": 128,
            "BASIS": 8,
            **({"grad_ptr": None} if "grad" in unused else {}),
            **({"along_x_ptr": None, "along_y_ptr": None} if "along" in unused else {}),
        }
        yield Variant("radial_basis", label, dtype, _radial_basis_kernel, signature, constants, _FOUR)


def _graphs(dtype: str, real: str) -> Iterator[Variant]:
    signature = {
        **_pointers(real, "positions strain shifts"),
        **_pointers("i64", "system sender receiver"),
        **_pointers(real, "grad out outer"),
        **_sizes("n_edges"),
    }
    for derivative in (False, True):
        constants = {"STRAINED": True, "DERIVATIVE": derivative, "BLOCK": 128}
        label = "derivatives" if derivative else "values"
        yield Variant("edge_vectors", label, dtype, _edge_vectors_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers(real, "edges outer"),
        **_pointers("i64", "by_receiver receiver_ptr by_sender sender_ptr"),
        **_pointers(real, "out strain"),
    }
    constants = {"STRAINED": True, "BLOCK": 32}
    yield Variant("edge_vectors", "sums", dtype, _edge_sums_kernel, signature, constants, _ONE)


def _features(dtype: str, real: str) -> Iterator[Variant]:
    signature = {
        **_pointers(real, "x y"),
        **_pointers("i64", "table"),
        **_pointers(real, "out"),
        **_sizes("n_results n_columns n_groups n_most"),
    }
    block = {"BLOCK": 256}
    yield Variant("grouped_dot", "dot", dtype, _grouped_dot_kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "scales x"),
        **_pointers("i64", "groups"),
        **_pointers(real, "out"),
        **_sizes("n_results n_columns scales_stride x_stride"),
    }
    yield Variant("grouped_dot", "scale", dtype, _grouped_scale_kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "grad x y"),
        **_pointers("i64", "groups"),
        **_pointers(real, "d_x d_y"),
        **_sizes("n_results n_columns grad_stride x_stride y_stride"),
    }
    kernel = _grouped_dot_backward_kernel
    yield Variant("grouped_dot", "dot, derivatives", dtype, kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "own field"),
        **_pointers("i64", "shifts"),
        **_pointers("fp64", "out"),
        **_sizes("n_results n_channels n_own n_field"),
    }
    constants: dict[str, Any] = {"FACTOR": 6.283185307179586, "BLOCK": 128}
    yield Variant("lattice_forces", "forces", dtype, _forces_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers(real, "x directions"),
        **_pointers("i64", "places"),
        **_pointers(real, "out"),
        **_sizes("n_results n_channels n_x n_out stride_directions_atom stride_directions_axis"),
    }
    yield Variant("lattice_forces", "along", dtype, _along_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers("fp64", "coords"),
        **_pointers("i64", "atoms atom_system table"),
        **_pointers("i32", "first"),
        **_pointers(real, "weights"),
        **_pointers("i64", "rows"),
        **_sizes("n_atoms"),
    }
    for order, rank in ((8, 1), (8, 2), (12, 2)):
        label = f"order {order} rank {rank}"
        yield Variant(
            "mesh_splines", label, dtype, splines_kernel(order, rank), signature, {"BLOCK": 128}, _FOUR
        )


def _networks(dtype: str, real: str) -> Iterator[Variant]:
    """Radial networks of MACE-POLAR, those of its densities, and that of its electron energies."""
    table = tuned("norm_network", torch.device("cpu"), getattr(torch, dtype))
    sizes = _sizes("n_rows n_in n_first n_hidden n_out")
    forward = {
        **_pointers(real, "x parameters offsets"),
        **_pointers("i64", "index"),
        **_pointers(real, "saved out"),
        **sizes,
    }
    names = "grad parameters saved more scratch scratch_out kept features sums out"
    backward = {**_pointers(real, names), **sizes}
    names = "v grad parameters saved kept of_grad of_saved of_kept before weighted sums"
    second = {**_pointers(real, names), **sizes}
    # of forces, of a training step's forces, of a training step's loss
    unused = {"": "more kept features sums", ", kept": "more features sums", ", of parameters": "kept"}
    for label, n_hidden, n_layers, end in (
        ("radial", 64, 3, 1),
        ("density", 64, 1, 2),
        ("energy", 128, 3, 0),
    ):
        rows, hidden, num_warps = block_sizes(n_hidden, table)
        options = {"num_warps": num_warps, "num_stages": table["num_stages"]}
        constants = {
            "EPS": 1e-5,
            "N_LAYERS": n_layers,
            "END": end,
            "BLOCK_ROWS": rows,
            "BLOCK_HIDDEN": hidden,
            "BLOCK_K": table["in"],
            "BLOCK_OUT": table["out"],
            "PRECISION": table["precision"],
        }
        values = {**constants, "N_INDICES": 2}
        yield Variant("norm_network", label, dtype, _norm_network_kernel, forward, values, options)
        training = options | {"num_warps": block_sizes(n_hidden, table, training=True)[2]}
        for which, none in unused.items():
            missing = {f"{name}_ptr": None for name in none.split()}
            name, fixed = f"{label}, derivatives{which}", {**constants, **missing}
            kernel = _norm_network_backward_kernel
            chosen = training if which else options
            yield Variant("norm_network", name, dtype, kernel, backward, fixed, chosen)
        name = f"{label}, second derivatives"
        yield Variant("norm_network", name, dtype, _norm_network_second_kernel, second, constants, training)


def _rows(dtype: str, real: str) -> Iterator[Variant]:
    """Gates, charges of systems, and forms of rows."""
    functions = {"SCALAR_SILU": True, "GATE_SILU": False, "SCALAR_FACTOR": 1.7, "GATE_FACTOR": 1.8}
    given = {**_pointers(real, "x divisor residual")}
    signature = {
        **given,
        **_pointers("i32", "groups"),
        **_pointers(real, "out"),
        **_sizes("n_results n_in n_out n_scalars n_gates"),
    }
    yield Variant("gated", "values", dtype, _gated_kernel, signature, {**functions, "BLOCK": 256}, _FOUR)
    signature = {
        **given,
        **_pointers(real, "grad"),
        **_pointers("i32", "groups table"),
        **_pointers(real, "d_y d_x d_divisor"),
        **_sizes("n_rows n_in n_out n_scalars n_gates n_most"),
    }
    constants = {**functions, "BLOCK_ROWS": 4, "BLOCK_COLUMNS": 128}
    yield Variant("gated", "derivatives", dtype, _gated_backward_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers(real, "v_x v_divisor v_y x divisor residual grad d_y"),
        **_pointers("i32", "groups table"),
        **_pointers(real, "of_x of_divisor of_residual of_grad"),
        **_sizes("n_rows n_in n_out n_scalars n_gates n_most"),
    }
    constants = {**constants, "BLOCK_ROWS": 2}
    yield Variant("gated", "second derivatives", dtype, _gated_second_kernel, signature, constants, _FOUR)
    block = {"UPDATED": True, "BLOCK": 256}
    signature = {
        **_pointers(real, "charges update targets"),
        **_pointers("i64", "ptr"),
        **_pointers(real, "out totals"),
        **_sizes("m"),
    }
    yield Variant("close_charges", "values", dtype, _close_charges_kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "grad update totals more"),
        **_pointers("i64", "ptr"),
        **_pointers(real, "d_charges d_update d_targets"),
        **_sizes("m"),
    }
    kernel = _close_charges_backward_kernel
    yield Variant("close_charges", "derivatives", dtype, kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "v_charges v_update v_targets grad update totals"),
        **_pointers("i64", "ptr"),
        **_pointers(real, "of_grad of_update of_totals"),
        **_sizes("m"),
    }
    kernel = _close_charges_second_kernel
    yield Variant("close_charges", "second derivatives", dtype, kernel, signature, block, _FOUR)
    signature = {
        **_pointers(real, "x m"),
        **_pointers("i64", "index"),
        **_pointers("i32", "table"),
        **_pointers(real, "factors out"),
        **_sizes("n_results n_out n_m n_most x_stride"),
    }
    constants = {"ROW_M": False, "BLOCK": 256}
    yield Variant("row_form", "values", dtype, _row_form_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers(real, "g x"),
        **_pointers("i64", "ptr"),
        **_pointers("i32", "table"),
        **_pointers(real, "factors out"),
        **_sizes("n_rows n_m n_most g_stride x_stride"),
    }
    yield Variant("row_form", "sums", dtype, _row_form_sums_kernel, signature, {"BLOCK": 256}, _FOUR)


def _cells() -> Iterator[Variant]:
    """Kernels in float64 alone."""
    tables = {**_pointers("i32", "miller"), **_pointers("i64", "system")}
    signature = {
        **_pointers("fp64", "inverse volume"),
        **tables,
        **_pointers("fp64", "weight height"),
        **_pointers("i64", "axis"),
        **_pointers("fp64", "grad out"),
        **_sizes("n_points"),
    }
    for derivative in (False, True):
        constants = {"CUT": True, "DERIVATIVE": derivative, "BLOCK": 128}
        label = "derivatives" if derivative else "values"
        yield Variant("wave_weights", label, "float64", _wave_weights_kernel, signature, constants, _FOUR)
    signature = {
        **_pointers("fp64", "sums waves window widths receivers grad out d_waves"),
        **_sizes("n_points n_channels n_widths n_receivers"),
    }
    for energy in (False, True):
        for derivative in (False, True):
            constants = {"WINDOW": True, "ENERGY": energy, "DERIVATIVE": derivative, "BLOCK": 128}
            label = ("energies" if energy else "coefficients") + (", derivatives" if derivative else "")
            yield Variant("wave_sums", label, "float64", _wave_sums_kernel, signature, constants, _FOUR)
    for name, kernel, names in (
        ("field", _polynomial_field_kernel, "r c out"),
        ("moments", _polynomial_moments_kernel, "r p out"),
    ):
        signature = {**_pointers("fp64", names), **_sizes("n_results n_channels")}
        constants = {"N_MONOMIALS": monomial_count(2), "BLOCK": 128}
        yield Variant("polynomial_field", name, "float64", kernel, signature, constants, _FOUR)
    for name, kernel, names in (
        ("values", _cell_inverse_kernel, "cell out"),
        ("derivatives", _cell_inverse_backward_kernel, "inverse grad out"),
    ):
        signature = {**_pointers("fp64", names), **_sizes("n")}
        yield Variant("cell_inverse", name, "float64", kernel, signature, {"BLOCK": 32}, _ONE)


def _slabs() -> Iterator[Variant]:
    """Kernels of slabs' cells, in float64 alone."""
    for derivative in (False, True):
        constants = {"DERIVATIVE": derivative, "BLOCK": 32}
        more = ", derivatives" if derivative else ""
        signature = {
            **_pointers("fp64", "cell"),
            **_pointers("i64", "axis"),
            **_pointers("fp64", "factor grad out"),
            **_sizes("n"),
        }
        yield Variant("slab_cell", "cells" + more, "float64", _slab_cell_kernel, signature, constants, _ONE)
        signature = {
            **_pointers("fp64", "inverse volume"),
            **_pointers("i64", "axis"),
            **_pointers("fp64", "weight grad out d_volume"),
            **_sizes("n"),
        }
        kernel = _slab_strengths_kernel
        yield Variant("slab_cell", "strengths" + more, "float64", kernel, signature, constants, _ONE)


def _inverses() -> Iterator[Variant]:
    """Singular vectors of small matrices, of each size that is compiled."""
    signature = {**_pointers("fp64", "matrix left right"), **_sizes("n_rows n_columns")}
    for size in (4, 8, 16, 32, 64):
        constants = {"ROWS": size, "HALF": size // 2, "SWEEPS": 30}
        warps = {"num_warps": warps_for(size // 2), "num_stages": 1}
        label = f"up to {size - 1} columns"
        yield Variant(
            "pseudo_inverse", label, "float64", _singular_vectors_kernel, signature, constants, warps
        )


def _conjugate_steps() -> Iterator[Variant]:
    """Steps of conjugate gradients at given charges, of systems in as many parts as there are."""
    step, constants = conjugate_step, {"BLOCK": conjugate_step.BLOCK}
    warps = {"num_warps": step.WARPS, "num_stages": 1}
    whole = constants | {"PARTS": step.MOST_PARTS}
    rows, numbers = _pointers("fp64", "direction image"), _pointers("i64", "ptr")
    look = {**rows, **_pointers("fp64", "ones"), **numbers, **_pointers("fp64", "parts")}
    yield Variant("conjugate_move", "curvature", "float64", step._look_kernel, look, constants, warps)
    rows |= _pointers("fp64", "point slope gradient ones")
    results = "parts progress scales new_point new_slope new_gradient met kept"
    move = {**rows, **numbers, **_pointers("fp64", results), **_sizes("n_rows")}
    plain = whole | {"kept_ptr": None}
    yield Variant("conjugate_move", "move", "float64", step._move_kernel, move, plain, warps)
    yield Variant("conjugate_move", "move, kept", "float64", step._move_kernel, move, whole, warps)
    rows = _pointers("fp64", "preconditioned gradient slope ones along")
    sums = {**rows, **numbers, **_pointers("fp64", "parts")}
    yield Variant("conjugate_move", "gradient", "float64", step._gradient_sums_kernel, sums, constants, warps)
    rows = _pointers("fp64", "preconditioned direction along")
    results = "parts progress met scales new_direction new_progress"
    turn = {**rows, **numbers, **_pointers("fp64", results)}
    stuck = whole | {"STUCK_BELOW": STUCK_BELOW}
    yield Variant("conjugate_move", "turn", "float64", step._turn_kernel, turn, stuck, warps)


def _sparse_inverses() -> Iterator[Variant]:
    """Rows of sparse inverses, of each size that is compiled."""
    signature = {
        **_pointers("fp32", "vectors"),
        **_pointers("i64", "neighbours"),
        **_pointers("u8", "used"),
        **_pointers("fp32", "width diagonal out"),
        "coulomb": "fp32",
        **_sizes("m"),
    }
    for size in (16, 32, 64):
        warps = {"num_warps": fsai_warps(size), "num_stages": 1}
        label = f"up to {size - 1} neighbours"
        yield Variant("fsai_rows", label, "float32", _fsai_rows_kernel, signature, {"SIZE": size}, warps)


def small_variants() -> Iterator[Variant]:
    """Every small kernel, at both dtypes where it has two."""
    for dtype, real in (("float32", "fp32"), ("float64", "fp64")):
        yield from _linear_maps(dtype, real)
        yield from _edges(dtype, real)
        yield from _graphs(dtype, real)
        yield from _features(dtype, real)
        yield from _networks(dtype, real)
        yield from _rows(dtype, real)
    yield from _cells()
    yield from _slabs()
    yield from _inverses()
    yield from _conjugate_steps()
    yield from _sparse_inverses()
