"""Density, potential and field of Gaussian multipoles at arbitrary points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.gaussian_pairs.radial import gaussian_radial

from ..segments import Segments
from ..units import COULOMB_CONSTANT
from . import checks
from .cutoff import cutoff_for_tolerance
from .density import symmetric_matrices
from .kspace import KSpace
from .mesh import Mesh
from .mesh_error import MeshResolution, cell_sizes, choose_mesh
from .slab import SlabPlan, gaussian_reach, lateral_reach, slab_extents
from .waves import Places, WaveSum, turn

if TYPE_CHECKING:
    from .geometry import Geometry

_CHUNK_PAIRS = 1 << 20


class PointValues(NamedTuple):
    """
    Values at points, from `Geometry.at`.

    Attributes:
        density: ``[n_points]`` e/angstrom^3.
        potential: ``[n_points]`` V.
        field: ``[n_points, 3]`` V/angstrom.

    Example:
        >>> import torch, scfmlip
        >>> positions = torch.zeros(1, 3, dtype=torch.float64)
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=0.5).prepare(positions, None, False)
        >>> points = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64)
        >>> values = geometry.at(points, torch.ones(1, 1, dtype=torch.float64))
        >>> round(float(values.potential), 3)  # V, 5 angstrom from a charge of 1 e
        2.88
        >>> round(float(values.field[0, 0]), 3)  # V/angstrom, away from it
        0.576
    """

    density: Tensor
    potential: Tensor
    field: Tensor


def evaluate_points(
    geometry: Geometry, points: Tensor, multipoles: Tensor, points_batch_idx: Tensor | None
) -> PointValues:
    """The implementation of `Geometry.at`."""
    if geometry.plan.segments.shared:
        raise ValueError(
            "values at points are not known for systems that several processes share: evaluate the density "
            "in one"
        )
    checks.check_positions(points, "points")
    checks.check_tensor("multipoles", multipoles, "[n_atoms, dim]")
    checks.check_same("points", points, geometry.positions)
    checks.check_finite("points", points, "angstrom")
    if multipoles.ndim != 2:
        raise ValueError("at() takes one density, multipoles [n_atoms, dim]")
    plan = geometry.plan
    if points_batch_idx is None:
        if plan.n_systems != 1:
            raise ValueError(
                f"this geometry holds {plan.n_systems} systems: pass points_batch_idx [n_points]"
            )
        points_batch_idx = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    point_ptr = checks.check_batch(points_batch_idx, len(points), plan.n_systems)
    moments = geometry._moments(multipoles)
    density = points.new_zeros(len(points))
    value = points.new_zeros((len(points), 4))
    ptr = point_ptr.tolist()
    if geometry.kspace is not None and plan.lattice is not None:
        numbers = plan.lattice.systems.tolist()
        where = torch.cat([torch.arange(ptr[i], ptr[i + 1]) for i in numbers]).to(points.device)
        counts = torch.tensor([ptr[i + 1] - ptr[i] for i in numbers])
        rho, v = _lattice_points(geometry, points[where], counts, plan.lattice.take(moments))
        density = density.index_copy(0, where, rho)
        value = value.index_copy(0, where, v)
    if geometry.openspace is not None and plan.open is not None:
        atom_ptr = plan.open.host_ptr.tolist()
        mine, atoms = plan.open.take(moments), geometry.openspace.positions
        for local, i in enumerate(plan.open.systems.tolist()):
            begin, end = atom_ptr[local], atom_ptr[local + 1]
            rho, v = _open_points(
                points[ptr[i] : ptr[i + 1]],
                atoms[begin:end],
                mine[begin:end, 0],
                geometry.coulomb.source.widths,
            )
            where = torch.arange(ptr[i], ptr[i + 1], device=points.device)
            density = density.index_copy(0, where, rho)
            value = value.index_copy(0, where, v)
    segments = Segments(point_ptr.to(points.device), points_batch_idx)
    if geometry.counter is not None:
        charge, zero = geometry._counter_zero(moments)
        extra = geometry.counter.field(charge, zero, points, segments, (0.0,), 1)
        value = value + extra[:, 0, 0].to(value.dtype)
        unit = geometry.counter.density(points, segments)
        density = density - (segments.expand(charge[:, 0]) * unit).to(density.dtype)
    return PointValues(density, *_with_external(geometry, value, points, segments))


def _with_external(
    geometry: Geometry, value: Tensor, points: Tensor, segments: Segments
) -> tuple[Tensor, Tensor]:
    """Potential and field at points, including external fields."""
    potential, gradient = value[:, 0], value[:, 1:]
    if geometry.external_potential is not None:
        potential = potential + segments.expand(geometry.external_potential)
    if geometry.external_field is not None:
        extra = geometry.coulomb.quirks.field_sign * segments.expand(geometry.external_field)
        gradient = gradient + extra
        origin = points
        if geometry.counter is not None:
            center = segments.expand(geometry.counter.center)
            origin = (points - center).to(points.dtype)
        potential = potential + (extra * origin).sum(-1)
    return potential, -gradient


def _lattice_points(
    geometry: Geometry, points: Tensor, counts: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Density and potential with its gradient, by Fourier synthesis.

    A bare Gaussian decays half as fast in k^2 as the product of two, so the sum has its own, larger cutoff.
    Far above and below a slab, where lateral variations have decayed, the slab is a plane with charge and
    dipole.
    """
    plan, source, cell = geometry.plan.lattice, geometry.coulomb.source, geometry.cell
    assert plan is not None and cell is not None
    cell = cell if plan.atoms is None else cell.index_select(0, plan.systems)
    host_ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    segments = Segments.counted(counts, points.device)
    atoms = plan.take(geometry.positions)
    tolerance = min(geometry.coulomb.tolerance, 1e-6)
    image_tolerance = 1e-2 * tolerance
    resolution = _bare_resolution(geometry, tolerance, len(points))
    smoothing = geometry.plan.smoothing
    received = smoothing.receivers((0.0,))
    points, beyond, normal, extents = points.double(), None, None, []
    everywhere = points
    if plan.slabs is not None:
        widest = math.hypot(max(smoothing.sources), received[0])
        window = _slab_windows(plan.slabs, cell, atoms, plan.segments, widest, source.l_max, image_tolerance)
        normal = segments.expand(plan.slabs.normals(cell.double())[0])
        low, high = (segments.expand(w) for w in window.unbind(1))
        z = (points * normal).sum(1)
        beyond = z - z.clamp(low, high)
        points = points - beyond[:, None] * normal
        normals, both = plan.slabs.normals(cell.double())[0], torch.cat((points, atoms.double()))
        index = torch.cat((segments.index, plan.segments.index))
        lowest, highest = slab_extents(both, normals, Segments.of(index, len(normals)))
        extents = (highest - lowest).clamp(min=0.0).tolist()
    widths = (max(smoothing.sources), received[0])
    dense_plan = plan.resized(cell, extents, widths, image_tolerance, source.l_max, resolution)
    kind = KSpace if dense_plan.mesh is None else Mesh
    dense = kind(dense_plan, atoms, cell.double(), smoothing.sources, geometry.coulomb.quirks)
    grid = dense_plan.grid
    rho = dense.density(moments)
    places = Places(turn(points, dense.inverse, segments), host_ptr, segments)
    rho = rho * dense.form_factor(received[0])[:, None, None]

    def at(coefficients: Tensor, rank: int) -> Tensor:
        return dense.series(coefficients, rank, places)[:, 0]

    volume = dense.points.expand(dense.volume)
    to_density = 2 * grid.weight / volume  # the origin's weight is 1/2
    series = torch.stack((2 * dense.coulomb, to_density), -1)[..., None] * rho
    value, density = at(series[:, :1], 1), at(series[:, 1:], 0)[:, 0]
    if dense.correction is not None:
        if plan.slabs is None:
            _check_window(dense, points, segments.index)
        extra = dense.correction.field(moments, received, 1, at=(points, segments))
        value = value + extra[:, 0, 0].to(value.dtype)
    if beyond is not None:
        assert dense.correction is not None and normal is not None
        outside = beyond != 0
        plane = dense.correction.far_field(moments, points + beyond[:, None] * normal, segments)
        value = torch.where(outside[:, None], plane[:, 0].to(value.dtype), value)
        density = torch.where(outside, torch.zeros_like(density), density)
    if geometry.near is not None:
        added, near = geometry.near.at(moments, everywhere, counts, segments.index, 0.1 * tolerance)
        density, value = (a + b.to(a.dtype) for a, b in ((density, added), (value, near)))
    return density, value


def _bare_resolution(geometry: Geometry, tolerance: float, n_points: int) -> float | MeshResolution:
    """Cutoff or mesh for the potential of Gaussians at points."""
    source, plan, waves = geometry.coulomb.source, geometry.plan, geometry.kspace
    half = 0.5 * (min(plan.smoothing.sources) ** 2 + plan.smoothing.receivers((0.0,))[0] ** 2)
    if geometry.near is not None:  # single waves stand out of so few, see `choice`
        tolerance = max(0.05 * tolerance, 1e-15)
    if not isinstance(plan.resolution, MeshResolution):
        return cutoff_for_tolerance(half, tolerance, source.l_max)
    assert waves is not None
    volume, height = cell_sizes(waves.cell.detach())
    return choose_mesh(half, tolerance, source.l_max, plan.segments.n_rows + n_points, volume, height)


def _slab_windows(
    slabs: SlabPlan,
    cell: Tensor,
    atoms: Tensor,
    segments: Segments,
    widest: float,
    l_max: int,
    image_tolerance: float,
) -> Tensor:
    """``[n_systems, 2]`` heights beyond which a slab is a charged plane with a dipole; infinite otherwise."""
    host = cell.detach().to("cpu", torch.float64)
    low, high = slab_extents(atoms, slabs.normals(cell.double())[0], segments)
    reach = torch.full_like(low, math.inf)
    for i, (is_slab, axis) in enumerate(zip(slabs.slab.tolist(), slabs.axis.tolist(), strict=True)):
        if is_slab:
            vectors = host[i, [(axis + 1) % 3, (axis + 2) % 3]]
            lateral = lateral_reach(vectors, widest, image_tolerance, l_max)
            reach[i] = max(lateral, gaussian_reach(widest**2, image_tolerance, l_max))
    empty = torch.isinf(low)
    low, high = torch.where(empty, 0.0, low), torch.where(empty, 0.0, high)
    return torch.stack((low - reach, high + reach), 1)


def _check_window(atoms: WaveSum, points: Tensor, index: Tensor) -> None:
    """
    Refuse points at least one cell height away from an atom of a slab that is summed in the user's cell.

    Its potential is a periodic sum plus a correction that is valid between an atom and its next image.
    """
    correction = atoms.correction
    assert correction is not None
    for i in torch.nonzero(correction.slab).flatten().tolist():
        normal, height = correction.normal[i].detach(), float(correction.height[i])
        z = correction.positions[atoms.segments.index == i].detach() @ normal
        at = points[index == i].detach().double() @ normal
        if len(z) == 0 or len(at) == 0:
            continue
        low, high = float(z.min()), float(z.max())
        outside = (at - low > height) | (high - at > height)
        if bool(outside.any()):
            raise ValueError(
                f"a point at {float(at[outside][0]):.2f} angstrom along the normal of slab {i} (atoms from "
                f"{low:.2f} to {high:.2f}) lies further than the cell height {height:.2f} from an atom, "
                f"among its periodic images: stay between {high - height:.2f} and {low + height:.2f}, or "
                "give the cell more vacuum"
            )


def _open_points(
    points: Tensor, atoms: Tensor, moments: Tensor, widths: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Density and potential with its gradient, pair by pair, in chunks."""
    rho_parts, value_parts = [], []
    step = max(1, _CHUNK_PAIRS // max(1, len(atoms)))
    for start in range(0, len(points), step):
        r = points[start : start + step, None] - atoms[None]
        distance = r.norm(dim=-1)
        rho = value = 0.0
        for w, width in enumerate(widths):
            q = moments[:, w, 0]
            gauss = torch.exp(-0.5 * (distance / width) ** 2) / (2 * math.pi * width**2) ** 1.5
            f = gaussian_radial(distance, 1 / (math.sqrt(2) * width), 3 if moments.shape[-1] > 4 else 2)
            if moments.shape[-1] > 1:
                d = moments[:, w, 1:4]
                along = (r * d).sum(-1)
                rho = rho + (gauss * (q + along / width**2)).sum(1)
                radial = q * f[1] - along * f[2]
                gradient = (r * radial[..., None]).sum(1) - f[1] @ d
                potential = (q * f[0] - along * f[1]).sum(1)
                if moments.shape[-1] > 4:
                    turned = torch.einsum("aij,paj->pai", symmetric_matrices(moments[:, w, 4:]), r)
                    twice = (r * turned).sum(-1)
                    rho = rho + (gauss * twice / width**4).sum(1)
                    potential = potential + (twice * f[2]).sum(1)
                    gradient = gradient + (2 * turned * f[2][..., None]).sum(1)
                    gradient = gradient + (r * (twice * f[3])[..., None]).sum(1)
            else:
                rho = rho + gauss @ q
                gradient = (r * (q * f[1])[..., None]).sum(1)
                potential = f[0] @ q
            value = value + COULOMB_CONSTANT * torch.cat((potential[:, None], gradient), 1)
        rho_parts.append(rho)
        value_parts.append(value)
    if not rho_parts:
        return points.new_zeros(0), points.new_zeros((0, 4))
    return torch.cat(rho_parts), torch.cat(value_parts)
