"""
Isolated systems: energy, forces and features over all pairs and through a mesh.

    python -m profiling.open_mesh

Charges and dipoles of width 1.5 angstrom, 0.1 atoms in a cubic angstrom of a cube, tolerance 1e-5 eV, one
thread, best of three runs of CPU time; and the difference of forces relative to their norm.
"""

import time

import torch

from scfmlip import Coulomb


def measure(n: int, dtype: torch.dtype) -> str:
    """One row of the table."""
    generator = torch.Generator().manual_seed(n)
    positions = torch.rand(n, 3, generator=generator, dtype=torch.float64) * (n / 0.1) ** (1 / 3)
    rows = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    times, forces = [], []
    for method in ("direct", "mesh"):
        operator = Coulomb(l_max=1, sigma=1.5, method=method, tolerance=1e-5)
        plan = operator.plan(None, False, None, n, positions=positions)
        best = float("inf")
        for _ in range(3 if n < 10000 else 1):
            start = time.process_time()
            r = positions.to(dtype, copy=True).requires_grad_()
            geometry = operator.prepare(r, None, False, plan=plan)
            geometry.energy(rows.to(dtype)).sum().backward()
            geometry.features(rows.to(dtype))
            best = min(best, time.process_time() - start)
        times.append(best)
        assert r.grad is not None
        forces.append(r.grad.double())
    off = float((forces[0] - forces[1]).norm() / forces[0].norm())
    name = str(dtype).removeprefix("torch.")
    return f"| {n:,} | {name} | {times[0]:.3f} | {times[1]:.3f} | {times[0] / times[1]:.1f} | {off:.1e} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| atoms | dtype | pairs, s | mesh, s | ratio | forces |\n|---|---|---|---|---|---|")
    for size in (300, 1000, 3000, 10000):
        for kind in (torch.float64, torch.float32):
            print(measure(size, kind), flush=True)
