"""
Every Triton kernel with the compile-time arguments it is launched with, for `bench.static_cost`.

Kernels of the tensor products are generated for one product or polynomial each: here those of the published
MACE models. Needs mace-torch for them, which knows their irreps and couplings.
"""

import itertools
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from scfmlip_kernels import ChannelwiseProduct
from scfmlip_kernels.channelwise_conv.generate import backward_kernel, forward_kernel, pieces
from scfmlip_kernels.channelwise_conv.generate_radial import radial_kernel
from scfmlip_kernels.channelwise_conv.generate_radial_backward import (
    path_groups,
    radial_edges_kernel,
    radial_matrix_kernel,
)
from scfmlip_kernels.channelwise_conv.kernel import _sum_rows_kernel, channel_blocks
from scfmlip_kernels.indexed_linear.kernel import _indexed_linear_kernel, _indexed_linear_weights_kernel
from scfmlip_kernels.indexed_linear.tiles import _sum_tiles_kernel, tile_constants
from scfmlip_kernels.registry import describe
from scfmlip_kernels.symmetric_contraction.generate import kernel, n_pieces
from scfmlip_kernels.symmetric_contraction.polynomial import (
    directional,
    polynomial_of,
    reduced_polynomial,
)
from scfmlip_kernels.tuned import tuned

from .static_electrostatics import CPU, Variant, charge_solves, coulomb_sums, meshes

# irreps of the features that are sent, and channels of each: published models, several of one shape
CONVOLUTIONS = {
    "MP-0 first layer": "128x0e",
    "POLAR-1-S": "512x0e",
    "OMOL-0 first layer": "1024x0e",
    "MP-0 medium, POLAR-1-M": "128x0e + 128x1o",
    "MP-0 large, OMOL-0, POLAR-1-L": "128x0e + 128x1o + 128x2e",
}
# channels, irreps of the result, degree. POLAR's have 512 channels and the polynomials of MP-0: the number
# of channels is in addresses only, so they stand in one row
CONTRACTIONS = {
    "MP-0 small, POLAR-1-S": (512, "0e", 3),
    "MP-0 medium, POLAR-1-M": (512, "0e + 1o", 3),
    "MP-0 large, POLAR-1-L": (512, "0e + 1o + 2e", 3),
    "OMOL-0": (1024, "0e + 1o + 2e", 2),
}
# derivatives in x, y and the weights: all of them; those a force loss asks for a second time, form by form
WANTED = {"x y w": (True, True, True), "y w": (False, True, True), "x w": (True, False, True)}
WANTED["x y"] = (True, True, False)
# widths of the last and the largest foundation model's skip connection, and the elements it knows
N_CHANNELS, N_SPECIES = 128, 89
# width of the radial features before the last layer
N_HIDDEN = 64
_ATTRIBUTES, _TARGET = "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"


@cache
def _convolution(features: str) -> ChannelwiseProduct:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
        from e3nn import o3
        from mace.modules.irreps_tools import tp_out_irreps_with_instructions

        from scfmlip.nn.descriptors import channelwise_product

        # e3nn's classes have no types
        first: Any = o3.Irreps(features)
        second: Any = o3.Irreps(_ATTRIBUTES)
        target: Any = o3.Irreps(_TARGET)
        out, instructions = tp_out_irreps_with_instructions(first, second, target)
        options = {"shared_weights": False, "internal_weights": False}
        found = channelwise_product(o3.TensorProduct(first, second, out, instructions, **options))
    assert found is not None
    return found


@cache
def _contraction(irreps_out: str, degree: int) -> str:
    """Text of the polynomial; the number of channels is no part of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mace  # noqa: F401
        from e3nn import o3
        from mace.modules.symmetric_contraction import SymmetricContraction

        from scfmlip.mace_torch.tensor_products import symmetric_polynomial

        # U tensors come in the default dtype
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            module = SymmetricContraction(
                o3.Irreps(_TARGET), o3.Irreps(irreps_out), degree, use_reduced_cg=False, num_elements=1
            )
        finally:
            torch.set_default_dtype(before)
    return describe(symmetric_polynomial(module))


def _options(parameters: dict[str, Any]) -> dict[str, int]:
    return {key: parameters[key] for key in ("num_warps", "num_stages")}


def _pointers(real: str, names: str, tables: str = "") -> dict[str, str]:
    reals = {f"{name}_ptr": f"*{real}" for name in names.split()}
    return reals | {f"{name}_ptr": "*i64" for name in tables.split()}


def _convolutions(dtype: str, real: str) -> Iterator[Variant]:
    parameters = tuned("channelwise", CPU, getattr(torch, dtype))
    tables = _pointers(real, "", "by_receiver receiver sender")
    for label, features in CONVOLUTIONS.items():
        product = _convolution(features)
        most = parameters["forward_components"]
        block, n_blocks = channel_blocks(product, parameters["forward"])
        for piece in range(len(pieces(product, most))):
            yield Variant(
                "channelwise_conv",
                f"{label}: values {piece + 1}",
                dtype,
                forward_kernel(product, most, piece),
                {**_pointers(real, "x y w out"), **tables},
                {"N_BLOCKS": n_blocks, "BLOCK_CHANNELS": block},
                _options(parameters),
            )
        most = parameters["backward_components"]
        block, n_blocks = channel_blocks(product, parameters["backward"])
        for (name, wanted), piece in itertools.product(WANTED.items(), range(len(pieces(product, most)))):
            yield Variant(
                "channelwise_conv",
                f"{label}: gradients in {name} {piece + 1}",
                dtype,
                backward_kernel(product, most, piece, wanted),
                {**_pointers(real, "x y w grad d_x d_y d_w"), **tables},
                {"N_BLOCKS": n_blocks, "BLOCK_CHANNELS": block},
                _options(parameters),
            )
    yield Variant(
        "channelwise_conv",
        "sum over senders",
        dtype,
        _sum_rows_kernel,
        {**_pointers(real, "rows", "order ptr"), "out_ptr": f"*{real}", "n_columns": "i32"},
        {"BLOCK_COLUMNS": 128},
        _options(parameters),
    )


def _radial_convolutions(dtype: str, real: str) -> Iterator[Variant]:
    parameters = tuned("radial", CPU, getattr(torch, dtype))
    most = parameters["components"]
    for label, features in CONVOLUTIONS.items():
        product = _convolution(features)
        block, n_blocks = channel_blocks(product, parameters["channels"])
        for piece in range(len(pieces(product, most))):
            yield Variant(
                "channelwise_conv",
                f"{label}: values, radial layer inside {piece + 1}",
                dtype,
                radial_kernel(product, most, piece),
                _pointers(real, "x y hidden matrix out", "by_receiver receiver sender"),
                {
                    "N_BLOCKS": n_blocks,
                    "BLOCK_CHANNELS": block,
                    "BLOCK_EDGES": parameters["edges"],
                    "N_HIDDEN": N_HIDDEN,
                    "BLOCK_HIDDEN": parameters["hidden"],
                    "PRECISION": parameters["precision"],
                },
                _options(parameters),
            )


# of the derivatives with the radial layer inside: all, and those of forces that reach one layer only
RADIAL_WANTED = {"x y hidden": (True, True, True), "y hidden": (False, True, True)}


def _radial_derivatives(dtype: str, real: str) -> Iterator[Variant]:
    kind = getattr(torch, dtype)
    edges, matrix = tuned("radial_edges", CPU, kind), tuned("radial_matrix", CPU, kind)
    tables = _pointers(real, "", "by_receiver receiver sender")
    common = {"N_HIDDEN": N_HIDDEN, "PRECISION": edges["precision"]}
    most = edges["components"]
    for label, features in CONVOLUTIONS.items():
        product = _convolution(features)
        for (name, wanted), piece in itertools.product(
            RADIAL_WANTED.items(), range(len(pieces(product, most)))
        ):
            yield Variant(
                "channelwise_conv",
                f"{label}: gradients in {name}, radial layer inside {piece + 1}",
                dtype,
                radial_edges_kernel(product, most, piece, wanted),
                {
                    **_pointers(real, "x y hidden matrix grad d_x d_y d_hidden"),
                    **tables,
                    **dict.fromkeys(("n_edges", "n_hidden"), "i32"),
                },
                {
                    **common,
                    "BLOCK_CHANNELS": edges["channels"],
                    "BLOCK_EDGES": edges["edges"],
                    "PADDED_HIDDEN": N_HIDDEN,
                    "BLOCK_HIDDEN": edges["hidden"],
                },
                _options(edges),
            )
        for group in range(len(path_groups(product, matrix["paths"]))):
            yield Variant(
                "channelwise_conv",
                f"{label}: gradient in the radial layer's matrix {group + 1}",
                dtype,
                radial_matrix_kernel(product, matrix["paths"], group),
                {
                    **_pointers(real, "x y hidden grad d_matrix"),
                    **tables,
                    **dict.fromkeys(("n_edges", "chunk_edges"), "i32"),
                },
                {
                    **common,
                    "PRECISION": matrix["precision"],
                    "BLOCK_CHANNELS": matrix["channels"],
                    "BLOCK_EDGES": matrix["edges"],
                    "BLOCK_HIDDEN": matrix["hidden"],
                },
                _options(matrix),
            )


def _contractions(dtype: str, real: str) -> Iterator[Variant]:
    kind = getattr(torch, dtype)
    parameters = tuned("symmetric_contraction", CPU, kind)
    names = {"values": ("x weights", "index"), "inputs": ("x weights grad", "index")}
    names["weights"] = ("x grad", "order ptr")
    for label, (n_channels, irreps_out, degree) in CONTRACTIONS.items():
        first = reduced_polynomial(_contraction(irreps_out, degree), kind)
        n_inputs = polynomial_of(first).n_inputs
        for order, key in (("", first), ("along a direction, ", directional(first))):
            for what, (reals, tables) in names.items():
                constants = {"N_CHANNELS": n_channels, "BLOCK_CHANNELS": parameters["channels"]}
                sizes = {}
                if what == "weights":
                    constants |= tile_constants(N_SPECIES, parameters["rows"])
                    sizes = {"n_species": "i32"}
                most = parameters["terms_inputs" if what == "inputs" else "terms"]
                for piece in range(n_pieces(key, what, most)):
                    yield Variant(
                        "symmetric_contraction",
                        f"{label}: {order}{what} {piece + 1}",
                        dtype,
                        kernel(key, what, most, piece, n_inputs if what == "inputs" else 0),
                        {**_pointers(real, reals, tables), "out_ptr": f"*{real}", **sizes},
                        constants,
                        _options(parameters),
                    )


def _linear_maps(dtype: str, real: str) -> Iterator[Variant]:
    parameters = tuned("indexed_linear", CPU, getattr(torch, dtype))
    tables = _pointers(real, "", "order ptr") | {"out_ptr": f"*{real}", "n_species": "i32"}
    common = {"N_IN": N_CHANNELS, "N_OUT": N_CHANNELS, "PRECISION": parameters["precision"]}
    for scale in (1, 3, 5):
        components = f"{scale} component{'s' if scale > 1 else ''}"
        strides = ["stride_x_row", "stride_x_component", "stride_x_in"]
        strides += ["stride_w_species", "stride_w_in", "stride_w_out"]
        yield Variant(
            "indexed_linear",
            f"values, {components}",
            dtype,
            _indexed_linear_kernel,
            {**_pointers(real, "x weights"), **tables, **dict.fromkeys(strides, "i32")},
            {
                **common,
                **tile_constants(N_SPECIES, parameters["rows"], scale),
                "BLOCK_IN": parameters["in"],
                "BLOCK_OUT": parameters["out"],
            },
            _options(parameters),
        )
        strides[3:] = ["stride_g_row", "stride_g_component", "stride_g_out"]
        yield Variant(
            "indexed_linear",
            f"gradient of the weights, {components}",
            dtype,
            _indexed_linear_weights_kernel,
            {**_pointers(real, "x grad"), **tables, **dict.fromkeys(strides, "i32")},
            {
                **common,
                **tile_constants(N_SPECIES, parameters["sum_rows"], scale),
                "BLOCK_IN": parameters["out"],
                "BLOCK_OUT": parameters["out"],
                "BLOCK_SUM": parameters["in"],
            },
            _options(parameters),
        )
    yield Variant(
        "indexed_linear",
        "sum over tiles",
        dtype,
        _sum_tiles_kernel,
        {**_pointers(real, "parts", "ptr"), "out_ptr": f"*{real}", "n_species": "i32"},
        {"N_NUMBERS": N_CHANNELS**2, "BLOCK": 256, **tile_constants(N_SPECIES, parameters["sum_rows"])},
        {"num_warps": 4, "num_stages": 1},
    )


def variants() -> Iterator[Variant]:
    """Every kernel at both dtypes."""
    yield from coulomb_sums()
    yield from meshes()
    for dtype, real in (("float32", "fp32"), ("float64", "fp64")):
        yield from charge_solves(dtype, real)
        yield from _convolutions(dtype, real)
        yield from _radial_convolutions(dtype, real)
        yield from _radial_derivatives(dtype, real)
        yield from _contractions(dtype, real)
        yield from _linear_maps(dtype, real)
