"""
Whether the solve in one launch pays, from what its parts cost.

One launch builds each system's matrix and reads it once per iteration, in one program per system::

    one = launches + n^3 products + iterations * max(turns * tiles * latency, bytes / bandwidth) + steps

with as many turns as the programs need that do not fit at once, and tiles of the largest system's matrix.
The way in many launches applies the Coulomb operator instead::

    many = launches + iterations * max(launches of one, atoms * waves / rate)

It has the better preconditioner. The constants, ns, stand in the family "charge_solve_costs" of `tuned`.
Those of `default.json` come from paper, none is measured:

* launches are counted on the simulated GPU (`python -m simulated_gpu.charge_solves`, in ``tests/``), half a
  launch of an iteration is the host's look whether it is the last; 5 us a launch;
* iterations are counted on a CPU: 1,000 atoms on a cubic lattice with noise of 0.2 angstrom, Gaussians of 1
  angstrom, hardness 8 to 9 V/e, tolerance 1e-6. Soft charges (1 to 2 V/e) take 60 and 10;
* a tile waits for one load from memory, 700 ns, and moves as a whole, so that its bytes do not matter;
* an element of a matrix takes 64 bytes while it is made; half the device's memory may be taken so;
* 3.35 TB/s for all programs together, and 60 TFLOP/s for the matrices' float64 products (H100);
* 15 wave vectors for each atom, half of them stored: 0.1 atoms per cubic angstrom, up to 4.5 per angstrom;
* an atom and a wave take what the instructions of `structure_factor` and `lattice_field` take, twice, because
  tiles are half empty.
"""

import torch
import triton
from torch import Tensor

from ..tuned import tuned
from .kernel import MAX_ATOMS, solve_options

# bytes of a device that is not asked
_MEMORY = 80 << 30


def solve_times(
    counts: Tensor, dtype: torch.dtype, device: torch.device, processors: int
) -> tuple[float, float]:
    """
    Estimated times of a batch, ns: in one launch, and in many.

    Args:
        counts: ``[n_systems]`` atoms of each system, on the CPU.
        dtype: Of the matrices.
        device: Whose table counts.
        processors: Multiprocessors of the GPU.
    """
    c = tuned("charge_solve_costs", device, dtype)
    largest, n = int(counts.max()), counts.double()
    _, rows, warps = solve_options(largest, tuned("charge_solve", device, dtype))
    elements = float((n**2).sum())
    at_once = processors * max(1, c["warps_at_once"] // warps)
    turns = triton.cdiv(len(counts), at_once)
    reading = max(turns * triton.cdiv(largest, rows) * c["tile"], elements * dtype.itemsize * c["byte"])
    one = c["one_launches"] * c["launch"] + float((n**3).sum()) * c["cube"]
    one += c["one_iterations"] * (reading + turns * c["step"])
    pairs = elements * c["waves_per_atom"] * c["pair"] * c["processors"] / processors
    many = c["many_launches"] * c["launch"]
    many += c["many_iterations"] * max(c["iteration_launches"] * c["launch"], pairs)
    return one, many


def one_launch_pays(counts: Tensor, like: Tensor) -> bool:
    """
    Whether a batch is better solved in one launch, for sizes that it can solve.

    Systems of up to "factorised" atoms would not be iterated otherwise, but their matrices made and
    factorised, one after another.

    Args:
        counts: ``[n_systems]`` atoms of each system, on the CPU.
        like: A tensor of the matrices' dtype, where they are.
    """
    if not len(counts) or not 0 < int(counts.max()) <= MAX_ATOMS:
        return False
    c = tuned("charge_solve_costs", like.device, like.dtype)
    if int(counts.max()) <= c["always"]:
        return True
    processors, memory = c["processors"], _MEMORY
    if like.is_cuda:
        properties = torch.cuda.get_device_properties(like.device)
        processors, memory = properties.multi_processor_count, properties.total_memory
    if float((counts.double() ** 2).sum()) * c["element_bytes"] > 0.5 * memory:
        return False
    if int(counts.max()) <= c["factorised"]:
        return True
    one, many = solve_times(counts, like.dtype, like.device, processors)
    return one <= many
