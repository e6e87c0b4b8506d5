"""
Errors of the mesh against the direct sum, by spacing and order of the splines: a picture.

    python -m profiling.mesh_convergence profiling/reports/2026-11-28-mesh-convergence.svg

500 atoms at random, 0.1 per cubic angstrom, charges and dipoles of width 1.5 angstrom, float64: relative root
mean square errors of forces, and of the potential and its gradient, against the direct sum at 1e-13 eV.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from scfmlip import Coulomb
from scfmlip.electrostatics.mesh_error import MeshResolution

ORDERS, SIZES, ATOMS = (6, 8, 10, 12), (12, 14, 18, 24, 32, 36, 48), 500


def values(geometry, positions: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    """Forces, and potentials with their gradients."""
    (gradient,) = torch.autograd.grad(geometry.energy(rows).sum(), positions)
    return [-gradient, geometry.potential(rows).detach()]


def errors() -> dict[int, list[tuple[float, float, float]]]:
    """Of each order: spacing, and errors of forces and potentials."""
    generator = torch.Generator().manual_seed(0)
    edge = (ATOMS / 0.1) ** (1 / 3)
    positions = torch.rand(ATOMS, 3, generator=generator, dtype=torch.float64) * edge
    rows = torch.randn(ATOMS, 4, generator=generator, dtype=torch.float64)
    cell = edge * torch.eye(3, dtype=torch.float64)
    positions.requires_grad_()
    exact = Coulomb(l_max=1, sigma=1.5, method="direct", tolerance=1e-13)
    right = values(exact.prepare(positions, cell), positions, rows)
    coulomb = Coulomb(l_max=1, sigma=1.5, method="mesh", smooth=0.0, tolerance=1e-6)
    plan = coulomb.plan(cell, True, None, ATOMS)
    found: dict[int, list[tuple[float, float, float]]] = {}
    for order in ORDERS:
        for size in SIZES:
            mesh = MeshResolution(order, edge / size, False, 0.0)
            assert plan.lattice is not None
            finer = plan.lattice.resized(cell[None], [], coulomb.widest, 1e-6, 1, mesh)
            geometry = coulomb.prepare(
                positions, cell, plan=dataclasses.replace(plan, lattice=finer, resolution=mesh)
            )
            off = [
                float((a - b).norm() / b.norm())
                for a, b in zip(values(geometry, positions, rows), right, strict=True)
            ]
            found.setdefault(order, []).append((edge / size, off[0], off[1]))
    return found


def draw(found: dict[int, list[tuple[float, float, float]]], path: Path) -> None:
    """Forces and potentials side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axis, name, column in ((axes[0], "forces", 1), (axes[1], "potential and gradient", 2)):
        for order, rows in found.items():
            axis.loglog([row[0] for row in rows], [row[column] for row in rows], "o-", label=f"order {order}")
        axis.set_xlabel("mesh spacing, angstrom")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative rms error")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = errors()
    for order, rows in found.items():
        for spacing, force, potential in rows:
            print(f"order {order}, {spacing:.2f} angstrom: forces {force:.1e}, potentials {potential:.1e}")
    draw(found, arguments.picture)


if __name__ == "__main__":
    main()
