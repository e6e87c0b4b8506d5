"""
Projected conjugate gradients for a ragged batch of small systems, in one launch.

Grid: (systems). One program owns a system: it keeps the vectors of the recursion in registers, reads the
matrix once per iteration, row after row because it is symmetric, and stops when its own system has converged
or failed. The preconditioner is the diagonal; the projector enforces the given sums (Gould, Hribar and
Nocedal, SIAM J. Sci. Comput. 23, 1376 (2001)). Vectors, products and dot products are float64,
whatever the dtype of the matrix. No atomics.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..tuned import compiler_options, tuned

# values of `status`, the same as in scfmlip.scf.Status
CONVERGED, ITERATIONS, INDEFINITE, NOT_FINITE, STAGNATED = range(5)
# largest system: its vectors fill the registers of one program
MAX_ATOMS = 2048


@triton.jit
def _product(matrix_ptr, vector, scratch_ptr, n, BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """
    Symmetric matrix times vector: the sum of its rows, each times a number of the vector.

    Threads own columns, so nothing is exchanged between them until the blocks of rows are added at the end.
    The vector goes through scratch memory of this program.
    """
    column = tl.arange(0, BLOCK)
    inside = column < n
    tl.debug_barrier()
    tl.store(scratch_ptr + column, vector, mask=inside)
    tl.debug_barrier()
    total = tl.zeros((BLOCK_ROWS, BLOCK), tl.float64)
    for start in range(0, n, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        valid = (row < n)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * n + column[None, :]
        tile = tl.load(matrix_ptr + place, mask=valid, other=0.0).to(tl.float64)
        total += tile * tl.load(scratch_ptr + row, mask=row < n, other=0.0)[:, None]
    return tl.sum(total, 0)


@triton.jit
def _projected(vector, inside, n, CONSTRAINED: tl.constexpr):
    """The vector minus its mean."""
    if CONSTRAINED:
        mean = tl.sum(vector, 0) / n.to(tl.float64)
        vector = tl.where(inside, vector - mean, vector * 0)
    return vector


@triton.jit
def _preconditioned(gradient, inverse, weight, CONSTRAINED: tl.constexpr):
    """The inverse diagonal times the gradient, projected so that the total charge is conserved."""
    z = inverse * gradient
    if CONSTRAINED:
        z = z - (tl.sum(z, 0) / weight) * inverse
    return z


@triton.jit
def _charge_solve_kernel(
    matrices_ptr,  # [sum n^2], row after row, system after system
    source_ptr,  # [n_atoms] float64
    initial_ptr,  # [n_atoms] float64
    totals_ptr,  # [n_systems] float64
    atom_ptr_ptr,  # [n_systems + 1] int64
    matrix_ptr_ptr,  # [n_systems + 1] int64
    tolerance_ptr,  # [1] float64
    scratch_ptr,  # [n_atoms] float64, scratch
    state_ptr,  # [n_atoms] float64, out
    slope_ptr,  # [n_atoms] float64, out
    residual_ptr,  # [n_systems] float64, out
    iterations_ptr,  # [n_systems] int64, out
    status_ptr,  # [n_systems] int64, out
    max_iterations,
    CONSTRAINED: tl.constexpr,
    PATIENCE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    system = tl.program_id(0).to(tl.int64)
    first = tl.load(atom_ptr_ptr + system)
    n = (tl.load(atom_ptr_ptr + system + 1) - first).to(tl.int32)
    matrix = matrices_ptr + tl.load(matrix_ptr_ptr + system)
    scratch = scratch_ptr + first
    tolerance = tl.load(tolerance_ptr)
    atom = tl.arange(0, BLOCK)
    inside = atom < n
    source = tl.load(source_ptr + first + atom, mask=inside, other=0.0)
    x = tl.load(initial_ptr + first + atom, mask=inside, other=0.0)
    count = tl.maximum(n, 1).to(tl.float64)
    if CONSTRAINED:
        total = tl.load(totals_ptr + system)
        x = tl.where(inside, x + (total - tl.sum(x, 0)) / count, x)
    own = tl.load(matrix + atom.to(tl.int64) * (n + 1), mask=inside, other=1.0).to(tl.float64)
    inverse = tl.where(inside, 1.0 / tl.maximum(tl.abs(own), 1e-6), own * 0)
    weight = tl.sum(inverse, 0)
    weight = tl.where(weight > 0, weight, weight * 0 + 1)

    slope = source + _product(matrix, x, scratch, n, BLOCK, BLOCK_ROWS)
    g = _projected(slope, inside, tl.maximum(n, 1), CONSTRAINED)
    b = _projected(source, inside, tl.maximum(n, 1), CONSTRAINED)
    norm = tl.sqrt(tl.sum(g * g, 0))
    scale = tl.sqrt(tl.sum(b * b, 0))
    scale = tl.where(scale > 0, scale, norm)
    scale = tl.where(scale > 0, scale, scale * 0 + 1)
    residual = norm / scale
    best = residual
    z = _preconditioned(g, inverse, weight, CONSTRAINED)
    p = -z
    rz = tl.sum(g * z, 0)
    # comparisons with NaN are false; the numbers are those of `Status`
    status = tl.where(residual <= tolerance, 0, tl.where(residual < float("inf"), 1, 3))
    iterations = 0
    since = 0
    while (status == 1) & (iterations < max_iterations):
        image = _product(matrix, p, scratch, n, BLOCK, BLOCK_ROWS)
        curvature = tl.sum(p * image, 0)
        good = (curvature > 0) & (curvature < float("inf"))
        flat = curvature <= 0
        alpha = tl.where(good, rz / tl.where(good, curvature, curvature * 0 + 1), rz * 0)
        x = tl.where(good, x + alpha * p, x)
        slope = tl.where(good, slope + alpha * image, slope)
        g = _projected(slope, inside, tl.maximum(n, 1), CONSTRAINED)
        residual = tl.where(good, tl.sqrt(tl.sum(g * g, 0)) / scale, residual)
        iterations = iterations + good.to(tl.int32)
        since = tl.where(residual < best, 0, since + 1)
        best = tl.minimum(best, residual)
        status = tl.where(good, status, tl.where(flat, 2, 3))
        status = tl.where(good & (residual <= tolerance), 0, status)
        status = tl.where(good & ~(residual < float("inf")), 3, status)
        status = tl.where((status == 1) & (since > PATIENCE) & (best < 1e-3), 4, status)
        z = _preconditioned(g, inverse, weight, CONSTRAINED)
        fresh = tl.sum(g * z, 0)
        p = tl.where(rz != 0, fresh / tl.where(rz != 0, rz, rz * 0 + 1), rz * 0) * p - z
        rz = fresh
    if CONSTRAINED:
        total = tl.load(totals_ptr + system)
        x = tl.where(inside, x + (total - tl.sum(x, 0)) / count, x)
    tl.store(state_ptr + first + atom, x, mask=inside)
    tl.store(slope_ptr + first + atom, slope, mask=inside)
    tl.store(residual_ptr + system, residual)
    tl.store(iterations_ptr + system, iterations.to(tl.int64))
    tl.store(status_ptr + system, status.to(tl.int64))


def solve_options(largest: int, table: dict) -> tuple[int, int, int]:
    """Atoms that a program holds, rows of the matrix that it reads at a time, and its warps."""
    block = max(16, triton.next_power_of_2(largest))
    large = block >= table["large_from"]
    tile, warps = (
        table[name] for name in (("large_tile", "large_warps") if large else ("tile", "num_warps"))
    )
    return block, max(1, tile // block), warps


def _pointers(atom_ptr: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """First atom and first element of each system, made once for the sizes of a batch."""
    atoms = tuple(atom_ptr.tolist())
    elements = tuple(itertools.accumulate(((b - a) ** 2 for a, b in itertools.pairwise(atoms)), initial=0))
    return constant(atoms, torch.int64, device), constant(elements, torch.int64, device)


def launch_charge_solve(
    matrices: Tensor,
    source: Tensor,
    totals: Tensor,
    atom_ptr: Tensor,
    initial: Tensor,
    tolerance: float,
    max_iterations: int,
    constrained: bool,
    first_atoms: Tensor | None,
    first_elements: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate and launch; arguments as `charge_solve`, contiguous, ``atom_ptr`` on the CPU."""
    n_atoms, n_systems, device = len(source), len(totals), source.device
    counts = atom_ptr.diff()
    state, slope, scratch = (source.new_zeros(n_atoms) for _ in range(3))
    residual = source.new_zeros(n_systems)
    iterations, status = (totals.new_zeros(n_systems, dtype=torch.int64) for _ in range(2))
    if n_systems and n_atoms:
        if first_atoms is None or first_elements is None:
            first_atoms, first_elements = _pointers(atom_ptr, device)
        table = tuned("charge_solve", device, matrices.dtype)
        block, rows, warps = solve_options(int(counts.max()), table)
        _charge_solve_kernel[(n_systems,)](
            matrices_ptr=matrices,
            source_ptr=source,
            initial_ptr=initial,
            totals_ptr=totals,
            atom_ptr_ptr=first_atoms,
            matrix_ptr_ptr=first_elements,
            tolerance_ptr=source.new_full((1,), tolerance),
            scratch_ptr=scratch,
            state_ptr=state,
            slope_ptr=slope,
            residual_ptr=residual,
            iterations_ptr=iterations,
            status_ptr=status,
            max_iterations=max_iterations,
            CONSTRAINED=constrained,
            PATIENCE=25,
            BLOCK=block,
            BLOCK_ROWS=rows,
            **compiler_options(warps, table["num_stages"], matrices),
        )
    return state, slope, residual, iterations, status
