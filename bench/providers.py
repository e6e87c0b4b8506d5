"""
Who computes a quantity: adapters with the same inputs and outputs.

A provider turns a `Problem` into a function of its two leaves. What depends on cells and sizes only (wave
vectors, plans, form factors that the provider can keep) is made here and is not timed; what depends on
positions or multipoles happens inside the function.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch import Tensor

import scfmlip_kernels
from scfmlip import Coulomb
from scfmlip.types import Compat

from . import dense
from .problems import Problem
from .registry import KSPACE_CUTOFF, MESH_TOLERANCE, SIGMA, WIDTHS

Function = Callable[[Tensor, Tensor], Tensor]
# of rows of multipoles at one geometry
AtGeometry = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """A provider cannot do a case here; the message says why."""


class Provider(NamedTuple):
    """
    An adapter.

    Attributes:
        package: Distribution whose version is recorded.
        build: Makes the function, or raises `Unavailable`.
    """

    package: str
    build: Callable[[Problem], Function]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Peers make their tables in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def polar(problem: Problem, rows: Tensor, features: AtGeometry, energy: AtGeometry) -> Tensor:
    """
    What a PolarMACE evaluation asks for: two steps of features of two spin channels, then the energy.

    ``features`` maps ``[n_atoms, 2, dim]`` to ``[n_atoms, 2, n_features]``. The update stands in for the
    network.
    """
    q = rows
    for _ in range(2):
        spins = torch.stack((0.5 * q + problem.spin, 0.5 * q - problem.spin), 1)
        found = features(spins)
        q = q + 1e-4 * torch.tanh(found[:, 0, :4] + found[:, 1, :4])
    return energy(q)


def channelwise(features: AtGeometry) -> AtGeometry:
    """One call per spin channel, as PolarMACE makes them."""
    return lambda spins: torch.stack([features(rows) for rows in spins.unbind(1)], 1)


def choose(problem: Problem, energy: AtGeometry, features: AtGeometry, rows: Tensor) -> Tensor:
    """The case's quantity."""
    if problem.case.quantity == "energy":
        return energy(rows)
    if problem.case.quantity == "features":
        return features(rows)
    return polar(problem, rows, channelwise(features), energy)


def _ours(problem: Problem, compat: Compat | None = None, mesh: bool = False) -> Function:
    case = problem.case
    if case.quantity == "structure_factor":
        return lambda frac, moments: scfmlip_kernels.structure_factor(frac, moments, problem.grid)
    if case.quantity == "lattice_field":
        dtype = problem.dtype
        return lambda frac, p: scfmlip_kernels.lattice_field(frac, p, problem.grid, case.rank, dtype)
    if case.quantity == "gaussian_pairs":
        widths = torch.tensor([2**0.5 * SIGMA], dtype=torch.float64)
        return lambda r, m: scfmlip_kernels.gaussian_pairs(r, m, widths, problem.atom_ptr, case.rank)
    coulomb = Coulomb(
        l_max=case.l_max,
        sigma=SIGMA,
        boundary="open" if case.open_boundary else "periodic",
        method="mesh" if mesh else "direct",
        kspace_cutoff=None if mesh else KSPACE_CUTOFF,
        tolerance=MESH_TOLERANCE if mesh else 1e-6,
        compat=compat,
        feature_widths=WIDTHS,
        order="e3nn",
        validate=False,
    )
    cells = None if case.open_boundary else problem.cells
    plan = coulomb.plan(cells, problem.pbc, problem.batch_idx, len(problem.positions), problem.device)

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        geometry = coulomb.prepare(positions, cells, problem.pbc, problem.batch_idx, plan=plan)
        if case.quantity == "energy":
            return geometry.energy(rows)
        if case.quantity == "features":
            return geometry.features(rows)
        return polar(problem, rows, geometry.features, geometry.energy)

    return function


def _ours_compat(problem: Problem) -> Function:
    return _ours(problem, "graph_longrange")


def _ours_mesh(problem: Problem) -> Function:
    return _ours(problem, mesh=True)


def _torch(problem: Problem) -> Function:
    kind = problem.case.quantity
    if kind == "structure_factor":
        return lambda frac, moments: dense.structure_factor(problem, frac, moments)
    if kind == "lattice_field":
        return lambda frac, p: dense.lattice_field(problem, frac, p, problem.dtype)
    if kind == "gaussian_pairs":

        def pairs(positions: Tensor, moments: Tensor) -> Tensor:
            q, d = moments[:, 0, 0, 0], moments[:, 0, 0, 1:]
            value, gradient = dense.pair_field(positions, q, d, 2**0.5 * SIGMA)
            return torch.cat((value[:, None], gradient), 1)[:, None, None]

        return pairs
    if not problem.case.open_boundary:
        _ = problem.wave_vectors

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        systems = dense.fields(problem, positions)
        return choose(
            problem,
            lambda p: dense.energy(systems, problem, p),
            lambda p: dense.features(systems, problem, p),
            rows,
        )

    return function


def _graph_longrange(problem: Problem) -> Function:
    torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 unpickles one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from graph_longrange.energy import GTOElectrostaticEnergy
            from graph_longrange.features import GTOElectrostaticFeatures
            from graph_longrange.kspace import compute_k_vectors_flat
    except ImportError as error:
        raise Unavailable(f"{error}") from None
    case, device = problem.case, problem.device
    common = {"density_max_l": case.l_max, "density_smearing_width": SIGMA, "kspace_cutoff": KSPACE_CUTOFF}
    with default_dtype(problem.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        energy = GTOElectrostaticEnergy(**common).to(device)
        features = GTOElectrostaticFeatures(
            **common,
            feature_max_l=1,
            feature_smearing_widths=list(WIDTHS),
            include_self_interaction=False,
        ).to(device)
        reciprocal = 2 * torch.pi * torch.linalg.inv(problem.cells).mT
        k, k2, batch, origin = compute_k_vectors_flat(KSPACE_CUTOFF, problem.cells, reciprocal)
    arguments = {
        "k_vectors": k,
        "k_norm2": k2,
        "k_vector_batch": batch,
        "k0_mask": origin,
        "batch": problem.batch_idx,
        "volume": torch.linalg.det(problem.cells),
        "pbc": problem.pbc.to(device),
    }

    # 0.4.0 wants the periodicity again, 0.4.4 refuses it
    again = "pbc" in inspect.signature(features.forward_dynamic).parameters
    extra = {"pbc": arguments["pbc"]} if again else {}

    def function(positions: Tensor, rows: Tensor) -> Tensor:
        cache = {}
        if case.quantity != "energy":
            cache = features.precompute_geometry(node_positions=positions, **arguments)
        return choose(
            problem,
            lambda p: energy(source_feats=p, node_positions=positions, **arguments),
            lambda p: features.forward_dynamic(cache=cache, source_feats=p, **extra),
            rows,
        )

    return function


def providers() -> dict[str, Provider]:
    """Every provider by name; peers are imported when they are built."""
    from . import peers

    return {
        "scfmlip": Provider("scfmlip", _ours),
        "scfmlip-compat": Provider("scfmlip", _ours_compat),
        "scfmlip-mesh": Provider("scfmlip", _ours_mesh),
        "torch": Provider("torch", _torch),
        "graph-longrange": Provider("graph-longrange", _graph_longrange),
        "torch-pme-ewald": Provider("torch-pme", peers.torch_pme_ewald),
        "torch-pme-mesh": Provider("torch-pme", peers.torch_pme_mesh),
        "nvalchemi": Provider("nvalchemi-toolkit-ops", peers.nvalchemi),
        "nvalchemi-pme": Provider("nvalchemi-toolkit-ops", peers.nvalchemi_pme),
    }


def package_version(package: str) -> str:
    """Of an installed distribution, else an empty string; we may run from a checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
