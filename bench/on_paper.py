"""
Every kernel family on paper: occupancy, bytes, instructions and least time on an H100, as a Markdown table.

`python -m bench.on_paper` reads bench/results/static_cost.csv and knows one problem for each family, of 1,000
atoms. Nothing is measured. The least time is the largest of three: a launch; the bytes that have to come from
memory; and the instructions' issue slots, on as many multiprocessors as there are programs. A slot is one
warp's instruction; one of float64 takes two, a special function eight, a load from shared memory four. Counts
of instructions are those of the code, times how often a program runs through it. `--precision` compiles the
products of float32 matrices anew, with the precision of that name: registers, spills and slots.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from .static_cost import RESULTS, Cost, read

# H100 SXM: multiprocessors, GHz, bytes per ns, registers, shared bytes and warps of a multiprocessor
PROCESSORS, CLOCK, BANDWIDTH = 132, 1.755, 3350.0
REGISTERS, SHARED, WARPS, SCHEDULERS = 65536, 233472, 64, 4
# ns that a launch takes on the device, whatever it does
LAUNCH = 2500.0


@dataclass(frozen=True)
class Work:
    """
    A problem of a kernel family.

    Attributes:
        kernel, variant, dtype: The row of the results, the first whose variant starts so.
        problem: In words.
        programs: Of one launch.
        bodies: How often all programs of a launch together run through the code.
        megabytes: That come from memory, or go there, at least.
        first: What would be changed first.
    """

    kernel: str
    variant: str
    problem: str
    programs: float
    bodies: float
    megabytes: float
    first: str
    dtype: str = "float32"


_EDGES, _NOTHING = "60,000 edges", "nothing: fuse it into a neighbour"
WORK = (
    Work(
        "structure_factor",
        "rank 1",
        "7,500 waves",
        480,
        1890,
        0.2,
        "tf32x3, if accuracy holds: shared memory",
    ),
    Work("lattice_field", "rank 2", "7,500 waves", 500, 960, 0.3, "the same; 64 atoms where registers allow"),
    Work("lattice_field", "rank 3", "7,500 waves", 500, 960, 0.4, "the same"),
    Work("gaussian_pairs", "dipoles rank 1", "open box", 256, 1008, 0.6, "pairs beyond 5 S need no series"),
    Work(
        "gaussian_pairs",
        "sources of rank 2, rank 2",
        "open box",
        512,
        4000,
        1.4,
        "pairs beyond 5 S, as above",
    ),
    Work("listed_pairs", "charges rank 1", "60 neighbours", 1000, 1000, 1.0, "two targets a program"),
    Work(
        "channelwise_conv",
        "MP-0 medium, POLAR-1-M: values 1",
        f"{_EDGES}, 128 channels, one launch of several",
        2000,
        120000,
        307.0,
        "weights in float32 are read once: compute them inside (radial), if it is faster",
    ),
    Work(
        "symmetric_contraction",
        "MP-0 medium, POLAR-1-M: values 1",
        "128 channels",
        1000,
        1000,
        10.2,
        "share products of inputs between terms",
    ),
    Work(
        "indexed_linear",
        "values, 1 component",
        "128 to 128",
        32,
        256,
        6.8,
        "smaller tiles: 32 programs fill a quarter of the device",
    ),
    Work(
        "block_linear",
        "values",
        "128 to 128, 4 components",
        252,
        2016,
        4.2,
        "twice the code that Triton 3.6 makes: find out why",
    ),
    Work(
        "norm_network",
        "radial",
        f"{_EDGES}, 8, 64, 64, 64",
        1875,
        4900,
        64.0,
        "measure tf32x3, and more rows a program",
    ),
    Work("radial_basis", "values", f"{_EDGES}, 8 functions", 469, 469, 2.2, "nothing"),
    Work("spherical_harmonics", "values, l_max 3", _EDGES, 469, 469, 4.6, "write beside the radial basis"),
    Work("edge_vectors", "values", _EDGES, 469, 469, 2.2, "nothing"),
    Work("edge_vectors", "sums", _EDGES, 1000, 2000, 1.0, "nothing"),
    Work("gated", "values", "128 x 4", 2000, 2000, 5.1, "nothing"),
    Work("row_form", "values", "16 columns", 63, 63, 0.1, _NOTHING),
    Work("close_charges", "values", "1 system", 1, 4, 0.1, _NOTHING),
    Work("grouped_dot", "dot", "128 columns", 500, 500, 1.5, "nothing"),
    Work("lattice_forces", "forces", "rank 1", 24, 96, 0.1, _NOTHING),
    Work("lattice_forces", "along", "rank 1", 79, 79, 0.1, _NOTHING),
    Work("mesh_splines", "order 8 rank 1", "1,000 atoms", 8, 24, 0.2, _NOTHING),
    Work(
        "mesh_spread", "order 8 rank 1", "64^3 mesh", 1024, 1400, 1.4, "nothing: Fourier transforms take more"
    ),
    Work(
        "mesh_gather", "order 8 rank 1", "64^3 mesh", 125, 125, 1.1, "nothing: Fourier transforms take more"
    ),
    Work(
        "charge_solve",
        "128 atoms, charge given",
        "64 systems of 100, 15 iterations",
        64,
        480,
        5.1,
        "nothing reads ahead: the latency of a load for each tile bounds it, 45 us",
        "float64",
    ),
    Work("wave_weights", "values", "7,500 waves", 59, 59, 0.4, _NOTHING, "float64"),
    Work("wave_sums", "", "7,500 waves", 59, 59, 0.4, _NOTHING, "float64"),
    Work("polynomial_field", "field", "rank 2", 79, 79, 0.1, _NOTHING, "float64"),
    Work("cell_inverse", "values", "1 system", 1, 1, 0.0, _NOTHING, "float64"),
    Work("slab_cell", "cells", "1 system", 1, 1, 0.0, _NOTHING, "float64"),
    Work("conjugate_move", "move", "10,000 charges", 40, 40, 0.7, _NOTHING, "float64"),
    Work("conjugate_move", "turn", "10,000 charges", 40, 40, 0.4, _NOTHING, "float64"),
    Work(
        "fsai_rows",
        "up to 63 neighbours",
        "48 neighbours",
        1000,
        50000,
        0.9,
        "one column of the triangle a thread: half the work",
    ),
    Work(
        "pseudo_inverse",
        "up to 15 columns",
        "1 system, 7 sweeps",
        1,
        105,
        0.0,
        "one program waits for itself: its latency bounds it, not this",
        "float64",
    ),
)


def warps_of(cost: Cost) -> int:
    """Of a program."""
    return int(dict(part.split("=") for part in cost.parameters.split())["num_warps"])


def occupancy(cost: Cost) -> tuple[int, str]:
    """Warps that a multiprocessor holds, and what limits them."""
    warps = warps_of(cost)
    # registers are given out to warps in units of 256
    per_warp = -(-cost.registers * 32 // 256) * 256
    limits = {
        "registers": REGISTERS // (per_warp * warps),
        "shared memory": SHARED // (cost.shared_bytes + 1024),
        "warps": WARPS // warps,
        "programs": 32,
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit] * warps, limit


def slots(cost: Cost) -> int:
    """Issue slots of one warp that runs once through the code."""
    return cost.instructions + cost.fma64 + 7 * cost.special + 3 * cost.shared_loads


def times(cost: Cost, work: Work) -> tuple[float, float]:
    """Least times, ns, for memory and for the instructions."""
    busiest = -(-work.programs // PROCESSORS) / work.programs  # share of the programs on one multiprocessor
    cycles = slots(cost) * warps_of(cost) / SCHEDULERS * work.bodies * busiest
    return 1e6 * work.megabytes / BANDWIDTH, cycles / CLOCK


def row(costs: list[Cost], work: Work) -> str:
    """A line of the table."""
    cost = costs[0]
    warps, limit = occupancy(cost)
    memory, issue = times(cost, work)
    bounds = {"launch": LAUNCH, "memory": memory, "compute": issue}
    bound = max(bounds, key=lambda name: bounds[name])
    cells = [
        f"`{work.kernel}` {cost.variant}, {cost.dtype}",
        work.problem,
        f"{cost.registers}, {cost.spill_bytes} B",
        f"{warps} ({limit})",
        f"{cost.instructions}",
        f"{work.megabytes:g}",
        f"{memory / 1e3:.1f}",
        f"{issue / 1e3:.1f}",
        f"{bounds[bound] / 1e3:.1f}, {bound}",
        work.first,
    ]
    return "| " + " | ".join(cells) + " |"


def table(costs: list[Cost], target: str) -> list[str]:
    """Lines of the table; raises KeyError where a family has no problem, or a problem no kernel."""
    known = [c for c in costs if c.target == target]
    missing = {c.kernel for c in known} - {work.kernel for work in WORK}
    if missing:
        raise KeyError(f"no problem for {', '.join(sorted(missing))}: add it to WORK")
    heads = "kernel | problem | registers, spills | warps held | instructions | MB | memory, us | issue, us"
    lines = [f"| {heads} | least time, bound | first |", "|" + "---|" * 10]
    for work in WORK:
        found = [
            c
            for c in known
            if c.kernel == work.kernel and c.dtype == work.dtype and c.variant.startswith(work.variant)
        ]
        if not found:
            raise KeyError(f"{work.kernel} {work.variant} {work.dtype} is not in the results")
        exact = [c for c in found if c.variant == work.variant]
        lines.append(row(exact or found, work))
    return lines


def precisions(precision: str, target: str, kernels: list[str]) -> list[str]:
    """Matrix products of float32 as they are, and with another precision: the lines of a table."""
    from .static_cost import _variants, measure

    lines = ["| kernel | registers, spills | slots | warps held | at " + precision + " |", "|" + "---|" * 5]
    for v in _variants():
        if v.dtype != "float32" or "PRECISION" not in v.constants or v.kernel not in kernels:
            continue
        cells = []
        for name in ("ieee", precision):
            c = measure(dataclasses.replace(v, constants={**v.constants, "PRECISION": name}), target)
            numbers = (f"{c.registers}, {c.spill_bytes} B", f"{slots(c)}", f"{occupancy(c)[0]}")
            cells += [*numbers] if name == "ieee" else [" / ".join(numbers)]
        lines.append(f"| `{v.kernel}` {v.label} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--file", type=Path, default=RESULTS)
    parser.add_argument("--target", choices=("sm_80", "sm_90"), default="sm_90")
    parser.add_argument("--precision", choices=("tf32", "tf32x3"), help="compare it with ieee instead")
    parser.add_argument("--kernel", nargs="+", default=["block_linear", "indexed_linear", "norm_network"])
    options = parser.parse_args()
    if options.precision:
        precisions(options.precision, options.target, options.kernel)
        return
    print("\n".join(table(read(options.file), options.target)))


if __name__ == "__main__":
    main()
