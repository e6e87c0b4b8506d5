"""Checks of input; messages name the cause and what to do."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scfmlip_kernels.transforms import unwrapped

from ..devices import free_memory
from ..waiting import any_bad, when
from .boundary import Boundary
from .slab import extents_of, slab_extents

if TYPE_CHECKING:
    from .mesh_error import MeshResolution
    from .plan import Boxes, CoulombPlan


def check_tensor(name: str, value: object, what: str) -> None:
    """Check for a tensor; lists and arrays are refused."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {what}, got {type(value).__name__}")


def to_tensor(name: str, value: object, what: str, **options: Any) -> Tensor:
    """``torch.as_tensor`` with a message about what was expected."""
    try:
        if isinstance(value, Tensor):
            return value.to(**options) if options else value
        if isinstance(value, int | float) and options.get("device") is not None:
            return torch.full((), value, **options)  # a GPU fills it itself
        return torch.as_tensor(value, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(value, Tensor):
            raise
        raise TypeError(f"{name} must be {what}, got {value!r}") from error


def is_between(value: object, low: float, high: float) -> bool:
    """Whether a value is a number in the open interval."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and low < float(value) < high


def check_positions(positions: Tensor, name: str = "positions") -> None:
    """Check shape and dtype; reads metadata only."""
    shape = "[n_atoms, 3]" if name == "positions" else "[n_points, 3]"
    check_tensor(name, positions, f"{shape} in angstrom")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"{name} must have shape {shape}, got {list(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {positions.dtype}")


def check_same(name: str, tensor: Tensor, positions: Tensor) -> None:
    """Check that a tensor has the dtype and device of the positions."""
    if tensor.dtype != positions.dtype:
        raise TypeError(f"{name} is {tensor.dtype} but positions are {positions.dtype}: convert one of them")
    if tensor.device != positions.device:
        raise ValueError(
            f"{name} is on {tensor.device} but positions are on {positions.device}: move one of them"
        )


def check_finite(name: str, values: Tensor, unit: str) -> None:
    """Refuse NaN and infinity; names the first bad row."""
    values = unwrapped(values).detach()

    def refuse() -> None:
        bad = torch.nonzero(~torch.isfinite(values.flatten(1)).all(1)).flatten()
        raise ValueError(
            f"{name} holds NaN or infinity in {len(bad)} row(s), the first is row {int(bad[0])}: "
            f"{values[int(bad[0])].tolist()} {unit}. Check what produced it; nothing was computed"
        )

    when(any_bad(values), refuse)


def check_batch(batch_idx: Tensor, n_atoms: int, n_systems: int) -> Tensor:
    """Check for contiguous systems in range; returns ``[n_systems + 1]`` pointers on the CPU."""
    check_tensor("batch_idx", batch_idx, "[n_atoms] of integers, the system of each atom")
    if batch_idx.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"batch_idx must hold integers (int64), got {batch_idx.dtype}")
    if batch_idx.shape != (n_atoms,):
        raise ValueError(
            f"batch_idx must have shape [{n_atoms}], one system per atom, got {list(batch_idx.shape)}"
        )
    host = batch_idx.detach().to("cpu", torch.int64)
    if n_atoms and (int(host.min()) < 0 or int(host.max()) >= n_systems):
        raise ValueError(
            f"batch_idx must lie between 0 and {n_systems - 1} (there are {n_systems} cells), got "
            f"{int(host.min())} to {int(host.max())}"
        )
    if bool((host[1:] < host[:-1]).any()):
        raise ValueError(
            "batch_idx must not decrease: the atoms of a system have to be contiguous. Sort the batch by "
            "batch_idx first"
        )
    counts = torch.bincount(host, minlength=n_systems)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def check_pbc(pbc: object) -> Tensor:
    """
    Convert booleans, or numbers that are 0 or 1, to ``[1, 3]`` or ``[n_systems, 3]`` on the CPU.

    Args:
        pbc: One value for all, ``[3]``, ``[n_systems, 3]``, or MACE's ``[3 n_systems]``.
    """
    what = "booleans [3] or [n_systems, 3]"
    flags = to_tensor("pbc", pbc, what).detach().to("cpu")
    if flags.dtype != torch.bool and not bool(((flags == 0) | (flags == 1)).all()):
        raise ValueError(f"pbc must be {what}, got {flags.tolist()}")
    shape, flags = list(flags.shape), flags.bool()
    flags = flags.expand(3) if flags.ndim == 0 else flags
    if flags.ndim == 1 and flags.shape[0] % 3 == 0:
        flags = flags.view(-1, 3)
    if flags.ndim != 2 or flags.shape[1] != 3 or len(flags) == 0:
        raise ValueError(f"pbc must have shape [3] or [n_systems, 3], got {shape}")
    return flags


def count_systems(batch_idx: Tensor) -> int:
    """
    Number of systems of a batch, from ``batch_idx`` alone.

    Raises:
        ValueError: for a number so much larger than that of the atoms that it must be a mistake.
    """
    largest = int(batch_idx.max())
    if largest >= 1000 + 10 * len(batch_idx):
        raise ValueError(
            f"batch_idx goes up to {largest} with {len(batch_idx)} atoms: it must number the systems from 0"
        )
    return largest + 1


def check_cell(
    cell: Tensor, boundaries: list[Boundary], axes: list[int], cubic_boxes: bool, whole_slabs: bool
) -> None:
    """
    Check that the cells are finite and have a volume, for every system that needs its cell.

    Args:
        cell: ``[n_systems, 3, 3]`` float64 on the CPU.
        boundaries: Boundary of every system.
        axes: Open lattice direction of slabs.
        cubic_boxes: Whether the box of a molecule must be cubic, as its correction requires.
        whole_slabs: Whether to check the open vector of slabs too.
    """
    for i, kind in enumerate(boundaries):
        if kind == Boundary.OPEN:
            continue
        matrix = cell[i]
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"the cell of system {i} holds NaN or infinity: {matrix.tolist()}")
        if kind == Boundary.SLAB and not whole_slabs:
            lateral = matrix[[j for j in range(3) if j != axes[i]]]
            area = float(torch.linalg.cross(lateral[0], lateral[1]).norm())
            if not area > 1e-10 * float(lateral.norm(dim=1).prod()):
                raise ValueError(
                    f"the cell of system {i} has no volume (the lateral vectors {lateral.tolist()} of this "
                    "slab span no area): give it two independent lattice vectors along its periodic "
                    "directions, or set pbc to False for an isolated system"
                )
            continue
        lengths = matrix.norm(dim=1)
        volume = abs(float(torch.linalg.det(matrix)))
        if float(lengths.min()) == 0.0 or volume < 1e-10 * float(lengths.prod()):
            raise ValueError(
                f"the cell of system {i} has no volume (lattice vectors {matrix.tolist()}): give it three "
                "independent lattice vectors, or set pbc to False for an isolated system"
            )
        if kind == Boundary.MOLECULE_IN_BOX and cubic_boxes:
            check_cubic(matrix, i)


def check_wave_vectors(cells: Tensor, systems: list[int], cutoff: float, device: torch.device) -> None:
    """
    Refuse cells whose half sphere of wave vectors does not fit into memory or into 32-bit tables.

    Args:
        cells: ``[n, 3, 3]`` float64 on the CPU, the cells of the sums.
        systems: Their numbers in the batch.
        cutoff: Cutoff, 1/angstrom.
        device: Device of the tables.
    """
    volumes = torch.linalg.det(cells).abs()
    counts = volumes * cutoff**3 / (12 * math.pi**2)
    total = float(counts.sum())
    needed, free = total * _BYTES_PER_WAVE, free_memory(device)
    if total <= 2**31 and (needed < _SURELY_FREE or needed <= free):
        return
    worst = int(counts.argmax())
    raise ValueError(
        f"system {systems[worst]} has about {float(counts[worst]):.2g} wave vectors up to {cutoff:.3g} / "
        f"angstrom in a cell of {float(volumes[worst]):.3g} angstrom^3. Those of the batch would take about "
        f"{needed / 2**30:.3g} GiB of memory, {free / 2**30:.3g} GiB are free: use smaller cells or thinner "
        "slabs, wider Gaussians, a larger tolerance, or boundary='open' for an isolated system"
    )


def check_mesh(
    shapes: list[tuple[int, int, int]], systems: list[int], mesh: MeshResolution, device: torch.device
) -> None:
    """
    Refuse meshes that do not fit into memory.

    Args:
        shapes: Mesh points along the vectors of each cell.
        systems: Their numbers in the batch.
        mesh: Resolution of the meshes.
        device: Device of the meshes.
    """
    counts = [a * b * c for a, b, c in shapes]
    needed, free = sum(counts) * _BYTES_PER_POINT, free_memory(device)
    if needed < _SURELY_FREE or needed <= free:
        return
    worst = max(range(len(counts)), key=counts.__getitem__)
    raise ValueError(
        f"system {systems[worst]} needs a mesh of {' x '.join(map(str, shapes[worst]))} points "
        f"({mesh.spacing:.3g} angstrom apart). Those of the batch would take about "
        f"{needed / 2**30:.3g} GiB of memory, {free / 2**30:.3g} GiB are free: use smaller cells or thinner "
        "slabs, wider Gaussians, a larger tolerance, or boundary='open' for an isolated system"
    )


# bytes of tables while they are made and used (measured on a CPU), and a size that always fits
_BYTES_PER_WAVE, _BYTES_PER_POINT, _SURELY_FREE = 500.0, 250.0, 2**28


def check_thickness(plan: CoulombPlan, positions: Tensor, cell: Tensor | None) -> None:
    """
    Refuse slabs that are thicker than their plan allows; positions and cells are those of the whole batch.

    Raises:
        ValueError: names the system and what to do.
    """
    sub, boxes = plan.lattice, plan.boxes
    if len(positions) != plan.segments.n_rows:
        return
    if boxes is not None:
        _check_extents(boxes, positions)
    if sub is None or sub.slabs is None or cell is None:
        return
    slabs, cells = sub.slabs, cell.expand(plan.n_systems, 3, 3)
    cells = cells if sub.atoms is None else cells.index_select(0, sub.systems)
    low, high = slab_extents(sub.take(positions), slabs.normals(cells.detach().double())[0], sub.segments)
    over = slabs.slab & (high - low > slabs.thickness + 1e-3)

    def refuse() -> None:
        i = int(torch.nonzero(over)[0])
        raise ValueError(
            f"slab {int(sub.systems[i])} of the batch is {float(high[i] - low[i]):.2f} angstrom thick, its "
            f"plan is for up to {float(slabs.thickness[i]):.2f}: make a new one with positions=positions"
        )

    when(over.any(), refuse)


def _check_extents(boxes: Boxes, positions: Tensor) -> None:
    sub = boxes.lattice
    lengths = extents_of(sub.take(positions), sub.segments)
    over = (lengths > boxes.extents + 1e-3).any(1)

    def refuse() -> None:
        i = int(torch.nonzero(over)[0])
        now, most = (" x ".join(f"{v:.2f}" for v in row[i].tolist()) for row in (lengths, boxes.extents))
        raise ValueError(
            f"isolated system {int(sub.systems[i])} of the batch is {now} angstrom large, its plan is for "
            f"up to {most}: make a new one with positions=positions"
        )

    when(over.any(), refuse)


def check_cubic(matrix: Tensor, system: int) -> None:
    """Refuse boxes that are not cubic: the correction of a molecule in a box holds for cubic ones."""
    edge = abs(float(torch.linalg.det(matrix))) ** (1 / 3)
    gram = matrix @ matrix.T / edge**2
    if not torch.allclose(gram, torch.eye(3, dtype=gram.dtype), atol=1e-3):
        raise ValueError(
            f"boundary='molecule_in_box' needs a cubic cell, system {system} has "
            f"{matrix.tolist()}. Use boundary='open', which is exact and ignores the cell"
        )


def check_neutral(charges: Tensor, totals: Tensor, boundaries: list[Boundary], numbers: list[int]) -> None:
    """
    Refuse periodic systems without a background that are not neutral, up to rounding of their charges.

    Args:
        charges: ``[n_atoms, ...]`` charges of the systems that are summed over wave vectors.
        totals: ``[n_systems, ...]`` their sums.
        boundaries: Boundary of every system of the batch.
        numbers: Which systems the totals belong to.
    """
    charges, totals = unwrapped(charges), unwrapped(totals)
    rounding = torch.finfo(charges.dtype).eps * float(charges.detach().abs().sum())
    for value, i in zip(totals.detach().flatten(1).abs().amax(1).tolist(), numbers, strict=True):
        if boundaries[i] == Boundary.PERIODIC and (value > 1e-6 + rounding or math.isnan(value)):
            raise ValueError(
                f"system {i} is periodic and carries a charge of {value:.6g} e, whose energy diverges. "
                "Use background='uniform' for a neutralising background, or make its charge 0"
            )


def check_neutral_slabs(charges: Tensor, totals: Tensor) -> None:
    """Like `check_neutral`, for slabs whose potential far away is requested."""
    charges, totals = unwrapped(charges), unwrapped(totals)
    rounding = torch.finfo(charges.dtype).eps * float(charges.detach().abs().sum())
    for i, value in enumerate(totals.detach().flatten(1).abs().amax(1).tolist()):
        if value > 1e-6 + rounding or math.isnan(value):
            raise ValueError(
                f"slab {i} of the batch carries a charge of {value:.6g} e, and its potential is unbounded: "
                "give it a counter-charge, or make its charge 0"
            )


def check_plan(plan: CoulombPlan, n_atoms: int, cell: Tensor | None) -> None:
    """Check that a plan made elsewhere matches the atoms and cells."""
    planned = plan.segments.n_rows
    if planned != n_atoms:
        raise ValueError(
            f"this plan was made for {planned} atoms, the positions hold {n_atoms}: make a new one"
        )
    if plan.lattice is not None and cell is None:
        raise ValueError("this plan holds periodic systems: pass their cell [n_systems, 3, 3] too")
