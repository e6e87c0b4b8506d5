"""
Kernels of the Coulomb sums and the charge solve with the compile-time arguments they are launched with.

See `static_variants`, which takes them in.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from scfmlip_kernels.charge_solve.kernel import _charge_solve_kernel, solve_options
from scfmlip_kernels.gaussian_pairs.generate import SIZES, pairs_kernel
from scfmlip_kernels.gaussian_pairs.kernel import _gaussian_pairs_kernel, pairs_options
from scfmlip_kernels.lattice import monomial_count
from scfmlip_kernels.lattice.tiles import lattice_launch
from scfmlip_kernels.lattice_field.generate import lattice_field_kernel, parts
from scfmlip_kernels.listed_pairs.kernel import _listed_pairs_kernel
from scfmlip_kernels.mesh.grid import KERNEL_BLOCK
from scfmlip_kernels.mesh_gather.kernel import _mesh_gather_kernel, gather_atoms
from scfmlip_kernels.mesh_spread.kernel import _mesh_spread_kernel
from scfmlip_kernels.structure_factor.kernel import _structure_factor_kernel
from scfmlip_kernels.tuned import tuned

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments."""

    kernel: str
    label: str
    dtype: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    # instead of those options, where the target is AMD's
    amd: dict[str, int] = field(default_factory=dict)


def meshes() -> Iterator[Variant]:
    """Spreading and gathering of what energies, forces and their derivatives need, at two orders."""
    for dtype, real in (("float32", "fp32"), ("float64", "fp64")):
        options = tuned("mesh", CPU, getattr(torch, dtype))
        launch = {key: options[key] for key in ("num_warps", "num_stages")}
        sizes = {"n_atoms": "i32", "n_points": "i32"}
        for order, rank in itertools.product((8, 12), range(4)):
            common = {"ORDER": order, "RANK": rank, "N_MONOMIALS": monomial_count(rank)}
            pointers = {"first_ptr": "*i32", "weights_ptr": f"*{real}"}
            own = {
                "moments_ptr": f"*{real}",
                "block_ptr_ptr": "*i64",
                "rows_ptr": "*i64",
                "out_ptr": f"*{real}",
            }
            blocks = dict(zip(("BLOCK_X", "BLOCK_Y", "BLOCK_Z"), KERNEL_BLOCK, strict=True))
            constants = {
                **common,
                **blocks,
                "BLOCK_ATOMS": options["atoms"],
                "PRECISION": options["precision"],
            }
            label = f"order {order} rank {rank}"
            signature = {**pointers, **own, "out_ptr": f"*{real}", **sizes}
            spread = {**launch, "num_warps": options["spread_warps"]}
            yield Variant("mesh_spread", label, dtype, _mesh_spread_kernel, signature, constants, spread)
            own = {"values_ptr": f"*{real}", "atoms_ptr": "*i64", "rows_ptr": "*i64", "out_ptr": f"*{real}"}
            constants = {
                **common,
                "PADDED_ORDER": triton.next_power_of_2(order),
                "PADDED_MONOMIALS": triton.next_power_of_2(monomial_count(rank)),
                "BLOCK_ATOMS": gather_atoms(order, options),
            }
            signature = {**pointers, **own, **sizes}
            yield Variant("mesh_gather", label, dtype, _mesh_gather_kernel, signature, constants, launch)


def coulomb_sums() -> Iterator[Variant]:
    """Kernels of the Coulomb sums at every rank."""
    for dtype, real in (("float32", "fp32"), ("float64", "fp64")):
        device, kind = CPU, getattr(torch, dtype)
        turns = "*i32" if dtype == "float32" else "*fp64"
        tile = lattice_launch(device, kind)
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        blocks = {"BLOCK_ROWS": tile.rows, "BLOCK_L": tile.l, "BLOCK_ATOMS": tile.atoms}
        sizes = {"n_atoms": "i32", "n_points": "i32"}
        for rank in range(4):
            count = monomial_count(rank)
            common = {"RANK": rank, "N_MONOMIALS": count, **blocks, "PRECISION": tile.precision}
            pointers = {
                "turns_ptr": turns,
                "moments_ptr": f"*{real}",
                "row_tiles_ptr": "*i32",
                "point_tiles_ptr": "*i32",
                "out_ptr": "*fp64",
            }
            yield Variant(
                "structure_factor",
                f"rank {rank}",
                dtype,
                _structure_factor_kernel,
                {**pointers, **sizes},
                {**common, "FLUSH": tile.flush},
                options,
            )
            pointers = {
                "turns_ptr": turns,
                "p_ptr": f"*{real}",
                "row_tiles_ptr": "*i32",
                "atom_tiles_ptr": "*i32",
                "out_ptr": "*fp64",
            }
            yield Variant(
                "lattice_field",
                f"rank {rank}",
                dtype,
                lattice_field_kernel(rank),
                {**pointers, **sizes},
                {
                    **blocks,
                    "BLOCK_ATOMS": tile.field_atoms,
                    "PRECISION": tile.precision,
                    "PARTS": len(parts(rank)),
                },
                {**options, "num_warps": tile.field_warps},
            )
        yield from _pairs(kind, dtype)
        yield from _listed(kind, dtype)


# source rank and rank of second derivatives: charges with gradients, dipoles, quadrupoles
HIGH_PAIRS = ((0, 3), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 3))


def _pairs(kind: torch.dtype, dtype: str) -> Iterator[Variant]:
    """Sums over all pairs of isolated systems."""
    real = "fp32" if dtype == "float32" else "fp64"
    signature = {
        **{name: f"*{real}" for name in ("positions_ptr", "moments_ptr", "constants_ptr")},
        "tiles_ptr": "*i32",
        "out_ptr": "*fp64",
        **dict.fromkeys(SIZES, "i32"),
    }

    def launch(generated: bool, amd: bool) -> tuple[dict[str, int], dict[str, int]]:
        found = pairs_options(CPU, kind, generated, amd)
        blocks = {"BLOCK": found["block"], "BLOCK_SOURCES": found["sources"]}
        return blocks, {key: found[key] for key in ("num_warps", "num_stages")}

    terms = {"TERMS": 14 if dtype == "float32" else 26}
    blocks, options = launch(False, False)
    for n_moments, rank, softened in itertools.product((1, 4), (0, 1, 2), (False, True)):
        label = f"{'dipoles' if n_moments > 1 else 'charges'} rank {rank}" + (" softened" if softened else "")
        own = {"N_MOMENTS": n_moments, "RANK": rank, "N_OUT": monomial_count(rank), "SOFTENED": softened}
        kernel = _gaussian_pairs_kernel
        yield Variant("gaussian_pairs", label, dtype, kernel, signature, {**own, **terms, **blocks}, options)
    (blocks, options), (_, amd) = launch(True, False), launch(True, True)
    for source_rank, rank in HIGH_PAIRS:
        label = f"sources of rank {source_rank}, rank {rank}"
        kernel = pairs_kernel(source_rank, rank, dtype == "float64")
        yield Variant("gaussian_pairs", label, dtype, kernel, signature, {**terms, **blocks}, options, amd)


def _listed(kind: torch.dtype, dtype: str) -> Iterator[Variant]:
    """Sums over listed pairs."""
    real, options = ("fp32" if dtype == "float32" else "fp64"), tuned("listed_pairs", CPU, kind)
    names = ("targets_ptr", "sources_ptr", "moments_ptr", "alphas_ptr")
    for n_moments, rank in itertools.product((1, 4), (0, 1, 2)):
        yield Variant(
            "listed_pairs",
            f"{'dipoles' if n_moments > 1 else 'charges'} rank {rank}",
            dtype,
            _listed_pairs_kernel,
            {
                **{name: f"*{real}" for name in names},
                **dict.fromkeys(("first_ptr", "near_ptr"), "*i64"),
                "out_ptr": "*fp64",
                **dict.fromkeys(("n_targets", "n_sources", "n_widths"), "i32"),
            },
            {
                "N_MOMENTS": n_moments,
                "RANK": rank,
                "N_OUT": monomial_count(rank),
                "TERMS": 14 if dtype == "float32" else 26,
                "BLOCK": options["block"],
            },
            {key: options[key] for key in ("num_warps", "num_stages")},
        )


def charge_solves(dtype: str, real: str) -> Iterator[Variant]:
    """The solve of a batch of small systems, by the atoms of the largest."""
    table = tuned("charge_solve", CPU, getattr(torch, dtype))
    signature = {
        "matrices_ptr": f"*{real}",
        **dict.fromkeys(("source_ptr", "initial_ptr", "totals_ptr"), "*fp64"),
        **dict.fromkeys(("atom_ptr_ptr", "matrix_ptr_ptr"), "*i64"),
        **dict.fromkeys(("tolerance_ptr", "scratch_ptr", "state_ptr", "slope_ptr", "residual_ptr"), "*fp64"),
        **dict.fromkeys(("iterations_ptr", "status_ptr"), "*i64"),
        "max_iterations": "i32",
    }
    for atoms, constrained in itertools.product((128, 1024, 2048), (True, False)):
        block, rows, warps = solve_options(atoms, table)
        yield Variant(
            "charge_solve",
            f"{atoms} atoms, {'charge given' if constrained else 'at a potential'}",
            dtype,
            _charge_solve_kernel,
            signature,
            {"CONSTRAINED": constrained, "PATIENCE": 25, "BLOCK": block, "BLOCK_ROWS": rows},
            {"num_warps": warps, "num_stages": table["num_stages"]},
        )
