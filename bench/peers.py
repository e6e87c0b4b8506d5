"""Adapters of torch-pme and nvalchemi-toolkit-ops."""

# peers are optional
# pyright: reportMissingImports=false

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scfmlip.units import COULOMB_CONSTANT

from .problems import Problem
from .registry import KSPACE_CUTOFF, SIGMA, WIDTHS

if TYPE_CHECKING:
    from .providers import Function

# Meshes fine enough for the accuracy that the other providers have; see bench/README.md.
TORCH_PME_SPACING, TORCH_PME_NODES = 0.9, 7
NVALCHEMI_SPACING, NVALCHEMI_ORDER = 0.6, 6


def _one_system(problem: Problem) -> None:
    from .providers import Unavailable

    if problem.size.systems > 1:
        raise Unavailable("takes one system at a time")


def _torch_pme(problem: Problem, mesh: bool) -> "Function":
    """
    Energy of Gaussian charges as the long-range part of point charges.

    Two Gaussians of width sigma interact by ``erf(r / 2 sigma) / r``, torch-pme's long-range potential of
    smearing sqrt(2) sigma; an empty neighbour list leaves its short-range part out.
    """
    from .providers import Unavailable, default_dtype

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchpme
    except ImportError as error:
        raise Unavailable(f"{error}") from None
    _one_system(problem)
    device, dtype = problem.device, problem.dtype
    with default_dtype(dtype):
        potential = torchpme.CoulombPotential(smearing=math.sqrt(2) * SIGMA)
        if mesh:
            calculator = torchpme.PMECalculator(
                potential, mesh_spacing=TORCH_PME_SPACING, interpolation_nodes=TORCH_PME_NODES
            )
        else:
            calculator = torchpme.EwaldCalculator(potential, lr_wavelength=2 * math.pi / KSPACE_CUTOFF)
    calculator = calculator.to(device=device, dtype=dtype)
    k = problem.wave_vectors[0]
    options = {} if mesh else {"kvectors": torch.cat((k, -k))}
    pairs = torch.zeros((0, 2), dtype=torch.int64, device=device)
    distances = torch.zeros(0, dtype=dtype, device=device)

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        potentials = calculator(
            charges=rows,
            cell=problem.cells[0],
            positions=positions,
            neighbor_indices=pairs,
            neighbor_distances=distances,
            **options,
        )
        return COULOMB_CONSTANT * (rows * potentials).sum()[None]

    return function


def torch_pme_ewald(problem: Problem) -> "Function":
    """The direct sum over the same wave vectors."""
    return _torch_pme(problem, mesh=False)


def torch_pme_mesh(problem: Problem) -> "Function":
    """Its particle mesh."""
    return _torch_pme(problem, mesh=True)


def _import_nvalchemi():
    from .providers import Unavailable

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import warp

            setattr(warp.config, "quiet", True)  # noqa: B010 (a module that defines it at run time)
            from nvalchemiops.torch.interactions import electrostatics
    except ImportError as error:
        raise Unavailable(f"{error}") from None
    return electrostatics


def _per_system(problem: Problem, per_atom: Tensor) -> Tensor:
    if problem.size.systems == 1:
        return per_atom.sum()[None].to(problem.dtype)
    total = per_atom.new_zeros(problem.size.systems)
    return total.index_add(0, problem.batch_idx, per_atom).to(problem.dtype)


def nvalchemi(problem: Problem) -> "Function":
    """
    Direct sum; tables that depend on the cell are prepared once.

    A single system gets the same sphere of wave vectors as the others, batches the package's own box. It
    computes in float64 whatever it is given; the derivatives of its features need float64 inputs.
    """
    from .providers import choose

    electrostatics = _import_nvalchemi()
    case, batched = problem.case, problem.size.systems > 1
    cells = problem.cells.double()
    arguments = {"sigma": SIGMA, "receiver_sigmas": list(WIDTHS), "l_max": case.l_max, "feature_max_l": 1}
    if batched:
        cache = electrostatics.prepare_multipole_scf_cache(cells, k_cutoff=KSPACE_CUTOFF, **arguments)
    else:
        k = problem.to(torch.float64).wave_vectors[0]
        k = torch.cat((k.new_zeros((1, 3)), k))
        cache = electrostatics.prepare_multipole_scf_cache(cells[0], k_vectors=k, **arguments)
    batch_idx = problem.batch_idx.to(torch.int32) if batched else None

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        r = positions.double()

        def energy(p: Tensor) -> Tensor:
            per_atom = electrostatics.multipole_scf_step_energy(cache, r, p.double(), batch_idx=batch_idx)
            return _per_system(problem, per_atom)

        def features(p: Tensor) -> Tensor:
            found = electrostatics.multipole_scf_step_features(cache, r, p.double(), batch_idx=batch_idx)
            return found.to(problem.dtype)

        return choose(problem, energy, features, rows)

    return function


def nvalchemi_pme(problem: Problem) -> "Function":
    """Particle mesh without a real-space part: the density's own Gaussians are wide enough for the mesh."""
    electrostatics = _import_nvalchemi()
    _one_system(problem)
    device, cell = problem.device, problem.cells[0].double()
    edge = float(cell[0, 0])
    points = 2 * math.ceil(edge / NVALCHEMI_SPACING / 2)
    n_atoms = len(problem.positions)
    nobody = torch.zeros(0, dtype=torch.int32, device=device)
    neighbor_ptr = torch.zeros(n_atoms + 1, dtype=torch.int32, device=device)

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        per_atom = electrostatics.multipole_particle_mesh_ewald(
            positions.double(),
            rows.double(),
            cell,
            nobody,
            neighbor_ptr,
            nobody.view(0, 3),
            sigma=SIGMA,
            alpha=1e3,
            mesh_dimensions=(points, points, points),
            spline_order=NVALCHEMI_ORDER,
        )
        return _per_system(problem, per_atom)

    return function
