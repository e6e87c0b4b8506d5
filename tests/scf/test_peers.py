"""Charges that other programs found, where both can express the model: numbers recorded from their runs."""

import math

import torch
from tolerances import assert_close

from scfmlip import Coulomb, charge_equilibration
from scfmlip.units import COULOMB_CONSTANT

F64 = torch.float64
BOHR = 0.529177210544
# tad-multicharge 0.7.0 (Apache-2.0), EEQModel.param2019 in float64: Caldeweyher et al., J. Chem. Phys. 150,
# 154122 (2019). Two ammonia molecules with given coordination numbers, bohr; chi, kcn, eta, rad of H and N.
AMMONIA = torch.tensor(
    [
        [-2.98334550857544, -0.08808205276728, 0.0],
        [2.98334550857544, 0.08808205276728, 0.0],
        [-4.07920360565186, 0.25775116682053, 1.52985656261444],
        [-1.60526800155640, 1.24380481243134, 0.0],
        [-4.07920360565186, 0.25775116682053, -1.52985656261444],
        [4.07920360565186, -0.25775116682053, -1.52985656261444],
        [1.60526800155640, -1.24380481243134, 0.0],
        [4.07920360565186, -0.25775116682053, 1.52985656261444],
    ],
    dtype=F64,
)
EEQ = {
    7: (1.55819364, 0.09279548, 0.05317918, 1.3225029),
    1: (1.23695041, 0.0491611, -0.35015861, 0.55159092),
}
EEQ_CHARGES = {
    0.0: ([-0.8347348198463665, 0.273052216030628, 0.28863038778510997], -0.1750253972763951),
    1.0: ([-0.670779012742272, 0.3981571042532923, 0.37446480423568684], 1.2580588570451081),
}


def test_eeq_of_multicharge():
    """erf(r / sqrt(a_i^2 + a_j^2)) / r are Gaussians of width a / sqrt(2); energies in hartree."""
    numbers = [7, 7, 1, 1, 1, 1, 1, 1]
    coordination = torch.tensor([3.0, 3, 1, 1, 1, 1, 1, 1], dtype=F64)
    chi, kcn, eta, _ = torch.tensor([EEQ[z] for z in numbers], dtype=F64).T
    operator = Coulomb(l_max=0, sigma=[EEQ[z][3] * BOHR / math.sqrt(2) for z in (7, 1)])
    geometry = operator.prepare(BOHR * AMMONIA)
    hartree = COULOMB_CONSTANT / BOHR
    which = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    for total, ((n, h, bridge), energy) in EEQ_CHARGES.items():
        want = torch.tensor([n, n, h, bridge, h, h, bridge, h], dtype=F64)
        for method in ("dense", "cg"):
            solution = charge_equilibration(
                geometry,
                hartree * (chi - kcn * coordination.sqrt()),
                hartree * eta,  # of hydrogen negative: positive with the Gaussian's own interaction
                total,
                width_index=which,
                method=method,
                tolerance=1e-13,
            )
            assert_close(solution.charges, want, 1e-10)
            assert abs(float(solution.energy) / hartree - energy) < 1e-10


# LAMMPS 22 Jul 2025 update 4, fix qeq/point: eight atoms of two types in vacuum, tolerance 1e-13. Its Coulomb
# constant is 1, so chi and eta are in e/angstrom and 1/angstrom.
LAMMPS_POSITIONS = [
    [0.191, 0.081, 0.012],
    [0.005, 0.244, 3.874],
    [0.182, 3.819, 0.163],
    [0.281, 3.845, 3.601],
    [3.857, 0.01, 0.219],
    [3.653, 0.259, 3.762],
    [3.69, 3.727, 0.008],
    [3.637, 3.801, 3.794],
]
LAMMPS_CHARGES = [
    -0.08334772193499883,
    0.08379938503324966,
    -0.08532107379399023,
    0.08467485608061488,
    -0.08465917168603074,
    0.08493377317772621,
    -0.08332662099200255,
    0.08324657411543163,
]


def test_point_charges_of_lammps():
    """Gaussians of 0.35 angstrom are points beyond 3 angstrom, but for 1e-9."""
    sigma = 0.35
    positions = torch.tensor(LAMMPS_POSITIONS, dtype=F64)
    chi = COULOMB_CONSTANT * torch.tensor([0.2, -0.15] * 4, dtype=F64)
    eta = COULOMB_CONSTANT * torch.tensor([2.0, 2.3] * 4, dtype=F64)
    geometry = Coulomb(l_max=0, sigma=sigma).prepare(positions)
    hardness = eta - COULOMB_CONSTANT / (math.sqrt(math.pi) * sigma)
    solution = charge_equilibration(geometry, chi, hardness, method="dense")
    assert_close(solution.charges, torch.tensor(LAMMPS_CHARGES, dtype=F64), 1e-8)
