"""
Coulomb sums side by side, in one run on one thread: direct, mesh, and what "auto" picks.

    python -m profiling.coulomb_methods [--atoms 500 1000 2000 4000 10000] [--widths 1.0 0.3] [--l-max 1]

A jittered lattice of 0.1 atoms per cubic angstrom, float64. Energy and forces with the search for neighbours,
CPU time, best of several, and the relative error of the forces against a direct sum at a thousandth of the
tolerance, where one is affordable. Prints tables of Markdown.
"""

import argparse

import torch

from scfmlip import Coulomb

from .coulomb_costs import best, energy_and_forces, jittered

# waves times atoms beyond which the direct sum is not run
_MOST = 6e9
METHODS = ("direct", "mesh, not split", "mesh", "auto")


def operator(method: str, **options) -> Coulomb:
    """The operator of one column."""
    name, _, plain = method.partition(", ")
    return Coulomb(method=name, smooth=0.0 if plain else None, **options)


def forces(coulomb: Coulomb, positions: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """``[n_atoms, 3]`` eV/angstrom of random multipoles."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(len(positions), coulomb.source.dim, generator=generator, dtype=positions.dtype)
    r = positions.clone().requires_grad_()
    return torch.autograd.grad(coulomb.prepare(r, cell).energy(rows).sum(), r)[0]


def work(coulomb: Coulomb, volume: float, n_atoms: int) -> float:
    """Waves times atoms of a direct sum."""
    return n_atoms * volume * coulomb.cutoff**3 / (12 * torch.pi**2)


def row(n: int, sigma: float, l_max: int, tolerance: float, repeats: int) -> list[str]:
    """Of one size: atoms, times and errors of each method, what was picked."""
    positions, cell = jittered(n, torch.float64)
    volume, options = float(torch.linalg.det(cell)), {"sigma": sigma, "l_max": l_max, "tolerance": tolerance}
    exact = Coulomb(method="direct", **{**options, "tolerance": 1e-3 * tolerance})
    want = forces(exact, positions, cell) if work(exact, volume, len(positions)) < _MOST else None
    cells, times = [f"{len(positions):,}"], {}
    for method in METHODS:
        coulomb = operator(method, **options)
        if method == "direct" and work(coulomb, volume, len(positions)) > _MOST:
            cells.append("")
            continue
        plan = coulomb.plan(cell, None, None, len(positions))
        times[method] = best(energy_and_forces(coulomb, positions, cell, plan), repeats) * 1e-6
        text = f"{times[method]:.0f}"
        if want is not None:
            error = (forces(coulomb, positions, cell) - want).norm() / want.norm()
            text += f" ({float(error):.0e})"
        cells.append(text)
    geometry = coulomb.prepare(positions, cell)
    split = geometry.smooth_width
    cells.append(geometry.method[0] + (f", {split:.2f}" if split else ""))
    cells.append(f"{times['direct'] / times['auto']:.1f}" if "direct" in times else "")
    return cells


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=[500, 1000, 2000, 4000, 10000])
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--l-max", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for sigma in arguments.widths:
        given = f"l_max = {arguments.l_max}, {arguments.tolerance:g} eV"
        print(f"\nsigma = {sigma:g} angstrom, {given}: ms (error of forces)\n")
        print("| atoms |", " | ".join(METHODS), "| picked, smoothed to | direct / auto |")
        print("|---" * (len(METHODS) + 3) + "|", flush=True)
        for n in arguments.atoms:
            cells = row(n, sigma, arguments.l_max, arguments.tolerance, arguments.repeats)
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
