"""Refusals of bad input, with the cause and what to do."""

import math
from typing import Any

import torch
from torch import Tensor

from .boundary import Boundary


def check_tensor(name: str, value: object, what: str) -> None:
    """A tensor, not a list or an array."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {what}, got {type(value).__name__}")


def to_tensor(name: str, value: object, what: str, **options: Any) -> Tensor:
    """``torch.as_tensor`` that says what was wanted where there is no tensor in a value."""
    try:
        return torch.as_tensor(value, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(value, Tensor):
            raise
        raise TypeError(f"{name} must be {what}, got {value!r}") from error


def check_positions(positions: Tensor, name: str = "positions") -> None:
    """Shape and dtype; metadata only."""
    shape = "[n_atoms, 3]" if name == "positions" else "[n_points, 3]"
    check_tensor(name, positions, f"{shape} in angstrom")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"{name} must have shape {shape}, got {list(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {positions.dtype}")


def check_same(name: str, tensor: Tensor, positions: Tensor) -> None:
    """A tensor must share dtype and device with the positions."""
    if tensor.dtype != positions.dtype:
        raise TypeError(f"{name} is {tensor.dtype} but positions are {positions.dtype}: convert one of them")
    if tensor.device != positions.device:
        raise ValueError(
            f"{name} is on {tensor.device} but positions are on {positions.device}: move one of them"
        )


def check_finite(name: str, values: Tensor, unit: str) -> None:
    """No NaN or infinity; names the first offending row."""
    if not bool(torch.isfinite(values).all()):
        bad = torch.nonzero(~torch.isfinite(values.flatten(1)).all(1)).flatten()
        raise ValueError(
            f"{name} holds NaN or infinity in {len(bad)} row(s), the first is row {int(bad[0])}: "
            f"{values[int(bad[0])].tolist()} {unit}. Check what produced it; nothing was computed"
        )


def check_batch(batch_idx: Tensor, n_atoms: int, n_systems: int) -> Tensor:
    """Contiguous, in range; returns ``[n_systems + 1]`` pointers on the CPU (one synchronisation)."""
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


def check_cell(cell: Tensor, boundaries: list[Boundary], cubic_boxes: bool = True) -> None:
    """
    Finite and of some volume, for every system that needs its cell.

    Args:
        cell: ``[n_systems, 3, 3]`` float64 on the CPU.
        boundaries: Of every system.
        cubic_boxes: Whether the box of a molecule has to be cubic, as its correction wants it.
    """
    for i, kind in enumerate(boundaries):
        if kind == Boundary.OPEN:
            continue
        matrix = cell[i]
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"the cell of system {i} holds NaN or infinity: {matrix.tolist()}")
        lengths = matrix.norm(dim=1)
        volume = abs(float(torch.linalg.det(matrix)))
        if float(lengths.min()) == 0.0 or volume < 1e-10 * float(lengths.prod()):
            raise ValueError(
                f"the cell of system {i} has no volume (lattice vectors {matrix.tolist()}): give it three "
                "independent lattice vectors, or set pbc to False for an isolated system"
            )
        if kind == Boundary.MOLECULE_IN_BOX and cubic_boxes:
            check_cubic(matrix, i)


def check_wave_vectors(cell: Tensor, boundaries: list[Boundary], cutoff: float) -> None:
    """
    Refuse cells whose half sphere of wave vectors no memory holds and no 32-bit table counts.

    ``cell [n_systems, 3, 3]`` float64 on the CPU, cutoff 1/angstrom.
    """
    volumes = torch.linalg.det(cell).abs().tolist()
    for i, (kind, volume) in enumerate(zip(boundaries, volumes, strict=True)):
        number = volume * cutoff**3 / (12 * math.pi**2)
        if kind != Boundary.OPEN and number > 2**31:
            raise ValueError(
                f"system {i} has about {number:.2g} wave vectors up to {cutoff:.3g} / angstrom in its cell "
                f"of {volume:.3g} angstrom^3, more than a direct sum can hold: use less vacuum, wider "
                "Gaussians, a larger tolerance, or boundary='open' for an isolated system"
            )


def check_cubic(matrix: Tensor, system: int) -> None:
    """The molecule-in-a-box correction holds for cubic boxes."""
    edge = abs(float(torch.linalg.det(matrix))) ** (1 / 3)
    gram = matrix @ matrix.T / edge**2
    if not torch.allclose(gram, torch.eye(3, dtype=gram.dtype), atol=1e-3):
        raise ValueError(
            f"boundary='molecule_in_box' needs a cubic cell, system {system} has "
            f"{matrix.tolist()}. Use boundary='open', which is exact and ignores the cell"
        )


def check_neutral(charges: Tensor, totals: Tensor, boundaries: list[Boundary], numbers: list[int]) -> None:
    """
    A periodic system without a background must be neutral, to the rounding of its charges.

    Args:
        charges: ``[n_atoms, ...]`` of the systems that are summed over wave vectors.
        totals: ``[n_systems, ...]`` their sums.
        boundaries: Of every system of the batch.
        numbers: Which systems the totals belong to.
    """
    rounding = torch.finfo(charges.dtype).eps * float(charges.detach().abs().sum())
    for value, i in zip(totals.detach().flatten(1).abs().amax(1).tolist(), numbers, strict=True):
        if boundaries[i] == Boundary.PERIODIC and (value > 1e-6 + rounding or math.isnan(value)):
            raise ValueError(
                f"system {i} is periodic and carries a charge of {value:.6g} e, whose energy diverges. "
                "Use background='uniform' for a neutralising background, or make its charge 0"
            )


def check_plan(index: Tensor, n_atoms: int, needs_cell: bool, cell: Tensor | None) -> None:
    """A plan made elsewhere must fit what it is used for."""
    if len(index) != n_atoms:
        raise ValueError(
            f"this plan was made for {len(index)} atoms, the positions hold {n_atoms}: make a new one"
        )
    if needs_cell and cell is None:
        raise ValueError("this plan holds periodic systems: pass their cell [n_systems, 3, 3] too")
