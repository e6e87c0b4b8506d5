"""``scfmlip bench``: speed of the Coulomb operator on this machine."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CUTOFF, _SIGMA, _WIDTHS = 2.77, 1.5, (1.5, 3.0)


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "bench",
        help="time the Coulomb operator on this machine",
        description="Time one evaluation of MACE-POLAR's electrostatics (features of two spin channels in "
        "two steps, energy, forces) on random water-dense crystals, beside graph-longrange where it is "
        "installed, in turns, after checking that energies and forces agree. The full suite against all "
        "peers is in the repository, bench/.",
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=[100, 500, 1000, 2000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.set_defaults(run=run)


def _system(n_atoms: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    import torch

    generator = torch.Generator().manual_seed(0)
    edge = (n_atoms / 0.1) ** (1 / 3)
    positions = torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64) * edge
    rows = torch.randn(n_atoms, 4, generator=generator, dtype=torch.float64)
    rows = rows * torch.tensor([0.5, 0.2, 0.2, 0.2], dtype=torch.float64)
    rows[:, 0] -= rows[:, 0].mean()
    cell = torch.eye(3, dtype=torch.float64)[None] * edge
    return tuple(t.to(device, dtype) for t in (positions, cell, rows))


def _steps(positions, rows, features, energy) -> tuple[torch.Tensor, torch.Tensor]:
    """The workload: two steps for two spins, then energy and forces."""
    import torch

    positions = positions.detach().requires_grad_()
    spins = torch.stack((0.5 * rows, 0.5 * rows), 1)
    operator = features(positions)
    for _ in range(2):
        v = operator(spins)
        spins = spins + 1e-3 * torch.tanh(v[..., :4])
    total = energy(positions, spins.sum(1)).sum()
    return total.detach(), -torch.autograd.grad(total, positions)[0]


def ours(positions, cell, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """`Coulomb` on the workload."""
    from ..electrostatics import Coulomb

    coulomb = Coulomb(kspace_cutoff=_CUTOFF, compat="graph_longrange", order="e3nn", boundary="pbc")
    state = {}

    def features(r):
        state["geometry"] = coulomb.prepare(r, cell)
        return lambda spins: state["geometry"].features(spins, widths=_WIDTHS)

    return _steps(positions, rows, features, lambda r, p: state["geometry"].energy(p))


def theirs(positions, cell, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """graph-longrange on the workload, one spin at a time as mace-torch calls it."""
    import math

    import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
    import torch
    from graph_longrange.energy import GTOElectrostaticEnergy
    from graph_longrange.features import GTOElectrostaticFeatures
    from graph_longrange.kspace import compute_k_vectors_flat

    from ..mace_torch.building import default_dtype

    with default_dtype(positions.dtype):
        device = positions.device
        module = GTOElectrostaticFeatures(1, _SIGMA, 1, list(_WIDTHS), False, _CUTOFF).to(device)
        coulomb = GTOElectrostaticEnergy(1, _SIGMA, _CUTOFF).to(device)
        reciprocal = 2 * math.pi * torch.linalg.inv(cell.mT)
        k, k2, k_batch, origin = compute_k_vectors_flat(_CUTOFF, cell, reciprocal)
        common = {
            "k_vectors": k,
            "k_norm2": k2,
            "k_vector_batch": k_batch,
            "k0_mask": origin,
            "batch": torch.zeros(len(positions), dtype=torch.int64, device=device),
            "volume": torch.linalg.det(cell),
            "pbc": torch.ones((1, 3), dtype=torch.bool, device=device),
        }

        def features(r):
            cache = module.precompute_geometry(node_positions=r, **common)

            def call(spins):
                both = [module.forward_dynamic(cache, spins[:, s, None], common["pbc"]) for s in (0, 1)]
                return torch.stack(both, 1)

            return call

        return _steps(
            positions,
            rows,
            features,
            lambda r, p: coulomb(source_feats=p, node_positions=r, **common),
        )


def _timed(call: Callable[[], object], device: str) -> float:
    import torch

    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _rounds(count: int, what: str) -> Iterable[int]:
    """Numbers of the rounds, with a progress bar on a terminal where tqdm is installed."""
    try:
        from tqdm import trange
    except ModuleNotFoundError:
        return range(count)
    return trange(count, desc=what, unit="round", disable=None, leave=False)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    import importlib.util

    import torch

    from ..devices import pick_device

    if min(*arguments.atoms, arguments.repeats) < 1:
        raise ValueError("--atoms and --repeats must be at least 1")
    pick_device(arguments.device)
    peer = all(importlib.util.find_spec(name) for name in ("mace", "graph_longrange"))
    dtype = getattr(torch, arguments.dtype)
    where = (
        torch.cuda.get_device_name()
        if arguments.device != "cpu"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"MACE-POLAR electrostatics, energy + forces, {arguments.dtype}, {where}; medians, in turns")
    print(f"{'atoms':>7} {'scfmlip ms':>11} {'graph-longrange ms':>19} {'ratio':>7} {'forces agree to':>16}")
    for n_atoms in arguments.atoms:
        system = _system(n_atoms, dtype, arguments.device)
        calls = {"ours": lambda s=system: ours(*s)}
        agreement = float("nan")
        if peer:
            calls["theirs"] = lambda s=system: theirs(*s)
            (e1, f1), (e2, f2) = calls["ours"](), calls["theirs"]()
            agreement = float((f1 - f2).abs().max() / f2.abs().max())
            tolerance = 1e-3 if dtype == torch.float32 else 1e-8
            if agreement > tolerance or abs(float(e1 - e2)) > tolerance * abs(float(e2)):
                raise RuntimeError(
                    f"at {n_atoms} atoms scfmlip and graph-longrange disagree: energies {float(e1)} and "
                    f"{float(e2)}, forces to {agreement:.1e}: times are not printed"
                )
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in _rounds(arguments.repeats, f"{n_atoms} atoms"):
            for name, call in calls.items():
                times[name].append(_timed(call, arguments.device))
        mine = statistics.median(times["ours"]) * 1e3
        if peer:
            other = statistics.median(times["theirs"]) * 1e3
            print(f"{n_atoms:7d} {mine:11.2f} {other:19.2f} {other / mine:6.1f}x {agreement:16.1e}")
        else:
            print(f"{n_atoms:7d} {mine:11.2f} {'not installed':>19}")
    return 0
