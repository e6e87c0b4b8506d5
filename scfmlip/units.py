"""
Units and physical constants.

The public API uses electronvolt, angstrom and elementary charges: energies eV, forces eV/angstrom, stress
eV/angstrom^3 (ASE's sign: positive if the cell tends to shrink), charges e, dipoles e angstrom, potentials V,
fields V/angstrom.
"""

import math

# vacuum permittivity in e^2 / (eV angstrom), the value graph_longrange and MACE-POLAR use
VACUUM_PERMITTIVITY = 5.526349406e-3

# 1 / epsilon_0: the potential of a density in reciprocal space is FIELD_CONSTANT * rho(k) / k^2
FIELD_CONSTANT = 1 / VACUUM_PERMITTIVITY

# 1 / (4 pi epsilon_0) = 14.39964 eV angstrom / e^2: two point charges interact with this over r
COULOMB_CONSTANT = FIELD_CONSTANT / (4 * math.pi)

# Minus the potential at a charge of a simple cubic lattice in a uniform background, times L / charge
# (Makov and Payne, Phys. Rev. B 51, 4014 (1995))
CUBIC_MADELUNG = 2.8372974794806
