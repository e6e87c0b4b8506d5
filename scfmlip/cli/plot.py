"""``scfmlip plot``: density and potential of a structure as pictures."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import check_writable, replacing
from ..structures import read_frame

if TYPE_CHECKING:
    from ase import Atoms

    from ..electrostatics import PointValues

_UNITS = {"potential": "V", "density": "e/Å³", "field": "V/Å"}
_POINTS_AT_ONCE = 100_000
_MOST_POINTS = 100_000
_MOST_IN_PLANE = 4_000_000
_DENSITY_KEYS = ("scfmlip_charges", "charges", "REF_charges", "REF_hirshfeld", "initial_charges")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plot",
        help="draw density or potential: planar average, line or slice",
        description="Draw the charge density, the electrostatic potential or the field of Gaussian charges "
        "(and dipoles) of one frame, with the frame's own periodicity: averaged over planes along an axis, "
        "along a line through a point, or on a slice. A field is its component along the axis. The frame's "
        "counter_charge and external_field count, its external_charges do not.",
    )
    parser.add_argument("input", type=Path, help="structure, any format ASE reads")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--index", type=int, default=0, help="frame (default 0)")
    parser.add_argument("--quantity", choices=sorted(_UNITS), default="potential")
    parser.add_argument("--kind", choices=("planar", "line", "slice"), default="planar")
    parser.add_argument("--axis", choices=("x", "y", "z"), default="z", help="direction, or slice normal")
    parser.add_argument(
        "--through",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="point of a line or slice, angstrom (default: middle of the atoms)",
    )
    parser.add_argument("--charges", help="name of the array of charges (default: the first known one)")
    parser.add_argument("--dipoles", help="name of the array of atomic dipoles, e angstrom, x y z")
    parser.add_argument("--sigma", type=float, default=1.0, help="Gaussian width, angstrom (default 1)")
    parser.add_argument("--points", type=int, default=200, help="points along a line (default 200)")
    parser.add_argument("--data", type=Path, help="also write the numbers (.csv)")
    parser.set_defaults(run=run)


def read_rows(atoms: Atoms, charges: str | None, dipoles: str | None) -> np.ndarray:
    """
    Read rows ``[q, d_x, d_y, d_z]``, ``[n_atoms, 1 | 4]``, from a frame's arrays.

    Raises:
        ValueError: if there is no such array, or it does not hold one number per atom.
    """
    results = atoms.calc.results if atoms.calc is not None else {}
    arrays = {**atoms.arrays, **{k: v for k, v in results.items() if np.shape(v)[:1] == (len(atoms),)}}
    key = charges or next((k for k in _DENSITY_KEYS if k in arrays), None)
    if key is None or key not in arrays:
        raise ValueError(
            f"the frame has no array {key!r}" + f" of charges: pass --charges with one of {sorted(arrays)}"
        )
    if dipoles is not None and (dipoles not in arrays or np.shape(arrays[dipoles]) != (len(atoms), 3)):
        raise ValueError(f"the frame has no array {dipoles!r} [n_atoms, 3]: it has {sorted(arrays)}")
    try:
        rows = np.asarray(arrays[key], dtype=float).reshape(len(atoms), 1)
        return rows if dipoles is None else np.concatenate([rows, arrays[dipoles].astype(float)], 1)
    except ValueError:
        shape = list(np.shape(arrays[key]))
        raise ValueError(
            f"array {key!r} {shape} must hold one number of each of {len(atoms)} atoms"
        ) from None


def values_at(atoms: Atoms, rows: np.ndarray, sigma: float, points: np.ndarray) -> PointValues:
    """Density, potential and field at points ``[n, 3]``, of a frame's charges and external fields."""
    import torch

    from ..electrostatics import Coulomb
    from ..mace_torch.inputs import read_input

    coulomb = Coulomb(l_max=0 if rows.shape[1] == 1 else 1, sigma=sigma)
    given = read_input(atoms.info, "external_field")
    # mace's sign: energy + field . dipole
    field = -np.asarray(np.zeros(3) if given is None else given, dtype=float)
    geometry = coulomb.prepare(
        torch.as_tensor(atoms.positions, dtype=torch.float64),
        torch.as_tensor(np.asarray(atoms.cell), dtype=torch.float64) if atoms.pbc.any() else None,
        torch.as_tensor(np.asarray(atoms.pbc)),
        external_field=torch.as_tensor(field) if field.any() else None,
        counter_charge=atoms.info.get("counter_charge"),
    )
    return geometry.at(torch.as_tensor(points, dtype=torch.float64), torch.as_tensor(rows))


def frame_box(atoms: Atoms, margin: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """
    Origin and edge vectors to sample.

    Lattice vectors in periodic directions, one cell height around a slab, the atoms' extent otherwise.
    """
    origin, edges = np.zeros(3), np.array(atoms.cell, dtype=float)
    low, high = atoms.positions.min(0) - margin, atoms.positions.max(0) + margin
    for i in range(3):
        if atoms.pbc[i]:
            continue
        if np.linalg.norm(edges[i]) > 0 and atoms.pbc.any():
            fractions = atoms.cell.scaled_positions(atoms.positions)[:, i]
            origin += (0.5 * (fractions.min() + fractions.max()) - 0.5) * edges[i]
            continue
        edges[i] = np.eye(3)[i] * (high - low)[i]
        origin[i] = low[i]
    return origin, edges


def planar_averages(
    atoms: Atoms, rows: np.ndarray, sigma: float, quantities: Sequence[str], axis: int, n_points: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """
    Averages over planes along a lattice direction.

    Args:
        atoms: The frame.
        rows: ``[n_atoms, 1 | 4]`` rows ``[q, d_x, d_y, d_z]``.
        sigma: Gaussian width, angstrom.
        quantities: Some of "density", "potential", "field" (its component along the normal).
        axis: 0, 1 or 2.
        n_points: Number of planes.

    Returns:
        Height of each plane, angstrom along the plane normal, and the averages of each quantity.
    """
    from tqdm import trange

    origin, edges = frame_box(atoms)
    others = [i for i in range(3) if i != axis]
    normal = np.cross(edges[others[0]], edges[others[1]])
    normal = normal / np.linalg.norm(normal) * np.sign(normal @ edges[axis])
    # a grid of this spacing averages exactly: aliased waves have decayed to exp(-24)
    counts = [max(2, int(np.ceil(np.linalg.norm(edges[i]) / (0.9 * sigma)))) for i in others]
    a, b = (np.arange(n) / n for n in counts)
    if math.prod(counts) > _MOST_IN_PLANE:
        raise ValueError(
            f"planes of {' by '.join(map(str, counts))} points resolve Gaussians of {sigma:g} angstrom, "
            f"the limit is {_MOST_IN_PLANE}: use wider ones (--sigma)"
        )
    plane = a[:, None, None] * edges[others[0]] + b[None, :, None] * edges[others[1]]
    plane = plane.reshape(-1, 3)
    starts = origin + ((np.arange(n_points) + 0.5) / n_points)[:, None] * edges[axis]
    averages = [np.empty(n_points) for _ in quantities]
    at_once = max(1, _POINTS_AT_ONCE // len(plane))
    for first in trange(0, n_points, at_once, desc="planes", disable=None, leave=False):
        points = starts[first : first + at_once, None] + plane
        values = values_at(atoms, rows, sigma, points.reshape(-1, 3))
        for out, quantity in zip(averages, quantities, strict=True):
            picked = _pick(values, quantity, normal).reshape(-1, len(plane))
            out[first : first + at_once] = picked.mean(1)
    return starts @ normal, averages


def _pick(values: PointValues, quantity: str, direction: np.ndarray) -> np.ndarray:
    if quantity == "field":
        return values.field.numpy() @ direction
    return getattr(values, quantity).numpy()


def draw_slice(
    atoms: Atoms, rows: np.ndarray, sigma: float, quantity: str, axis: int, through: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cartesian coordinates of a grid in the plane normal to an axis, and the quantity on it."""
    from tqdm import tqdm

    origin, edges = frame_box(atoms)
    corners = origin + np.array(
        [i * edges[0] + j * edges[1] + k * edges[2] for i, j, k in np.ndindex(2, 2, 2)]
    )
    u, v = (i for i in range(3) if i != axis)
    low, high = corners.min(0), corners.max(0)
    step = 0.2
    count = math.prod(((high - low) / step)[[u, v]])
    if not count <= _MOST_IN_PLANE:
        raise ValueError(f"a slice of {count:.0f} points, one every {step} angstrom, is too large")
    x = np.arange(low[u], high[u], step)
    y = np.arange(low[v], high[v], step)
    points = np.empty((len(y), len(x), 3))
    points[..., u], points[..., v], points[..., axis] = x, y[:, None], through[axis]
    parts = np.array_split(points.reshape(-1, 3), -(-points.size // (3 * _POINTS_AT_ONCE)))
    bar = tqdm(parts, "points", disable=None, leave=False)
    picked = [_pick(values_at(atoms, rows, sigma, part), quantity, np.eye(3)[axis]) for part in bar]
    return x, y, np.concatenate(picked).reshape(len(y), len(x))


def _check(arguments: argparse.Namespace) -> None:
    """Check the arguments before anything is read; errors name the option."""
    files = [os.path.realpath(path) for path in (arguments.input, arguments.output, arguments.data) if path]
    if len(set(files)) < len(files):
        raise ValueError("input, output and --data must be different files")
    if not 1 <= arguments.points <= _MOST_POINTS:
        raise ValueError(f"--points must be 1 to {_MOST_POINTS}, got {arguments.points}")
    if not (math.isfinite(arguments.sigma) and arguments.sigma > 0):
        raise ValueError(f"--sigma must be a positive number, got {arguments.sigma}")
    if arguments.through and not np.isfinite(arguments.through).all():
        raise ValueError(f"--through must be three numbers, got {arguments.through}")
    for path in (arguments.output, arguments.data):
        if path is not None:
            check_writable(path)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _check(arguments)
    atoms = read_frame(arguments.input, arguments.index)
    if not len(atoms):
        raise ValueError(f"frame {arguments.index} of {arguments.input} has no atoms")
    rows = read_rows(atoms, arguments.charges, arguments.dipoles)
    axis = "xyz".index(arguments.axis)
    through = np.array(arguments.through if arguments.through else atoms.positions.mean(0))
    label = f"{arguments.quantity} ({_UNITS[arguments.quantity]})"
    fig, ax = plt.subplots(figsize=(6.4, 4.0), constrained_layout=True)
    common = (atoms, rows, arguments.sigma, arguments.quantity)
    if arguments.kind == "slice":
        x, y, values = draw_slice(*common, axis, through)
        limit = np.abs(values).max() or 1.0
        image = ax.pcolormesh(x, y, values, cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest")
        fig.colorbar(image, ax=ax, label=label)
        u, v = (i for i in range(3) if i != axis)
        near = np.abs(atoms.positions[:, axis] - through[axis]) < 1.5
        ax.scatter(*atoms.positions[near][:, [u, v]].T, s=12, c="k")
        ax.set(xlabel=f"{'xyz'[u]} (Å)", ylabel=f"{'xyz'[v]} (Å)", aspect="equal")
        table = np.column_stack([*(g.ravel() for g in np.meshgrid(x, y)), values.ravel()])
        names = f"{'xyz'[u]},{'xyz'[v]},{arguments.quantity}"
    else:
        if arguments.kind == "planar":
            positions, (values,) = planar_averages(
                atoms, rows, arguments.sigma, [arguments.quantity], axis, arguments.points
            )
        else:
            origin, edges = frame_box(atoms)
            extent = sorted((float(origin[axis]), float(origin[axis] + edges[:, axis].sum())))
            positions = np.linspace(extent[0], extent[1], arguments.points)
            points = np.repeat(through[None], len(positions), 0)
            points[:, axis] = positions
            picked = values_at(atoms, rows, arguments.sigma, points)
            values = _pick(picked, arguments.quantity, np.eye(3)[axis])
        ax.plot(positions, values)
        ax.plot(atoms.positions[:, axis], np.full(len(atoms), ax.get_ylim()[0]), "|k", markersize=8)
        ax.set(xlabel=f"{arguments.axis} (Å)", ylabel=label)
        table, names = np.column_stack([positions, values]), f"{arguments.axis},{arguments.quantity}"
    title = "planar average" if arguments.kind == "planar" else arguments.kind
    ax.set_title(f"{arguments.input.name}, frame {arguments.index}: {title}", fontsize=9)
    with replacing(arguments.output) as part:
        fig.savefig(part, dpi=150, format=arguments.output.suffix[1:] or "png")
    plt.close(fig)
    if arguments.data is not None:
        with replacing(arguments.data) as part:
            np.savetxt(part, table, delimiter=",", header=names, comments="")
    print(f"wrote {arguments.output}" + (f" and {arguments.data}" if arguments.data else ""))
    return 0
