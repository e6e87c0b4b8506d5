"""
The glossary: one name, shape, dtype and unit for each quantity.

Positions and everything derived from them are float32 or float64. The tensors of a call share one dtype and
one device. The atoms of each of the `n_systems` systems in a batch are contiguous; `n_atoms` counts all of
them.

| name | shape | unit | meaning |
|---|---|---|---|
| `positions` | `[n_atoms, 3]` | angstrom | Cartesian |
| `cell` | `[n_systems, 3, 3]` | angstrom | rows are lattice vectors |
| `pbc` | `[n_systems, 3]` bool | | periodic along each lattice vector |
| `batch_idx` | `[n_atoms]` int64 | | system of each atom, not decreasing |
| `atom_ptr` | `[n_systems + 1]` int64 | | first atom of each system |
| `multipoles` | `[n_atoms, n_widths * (l_max + 1)^2]` | e, e A, e A^2 | Gaussian multipole coefficients |
| `potential` | as `multipoles` | V, V/angstrom | dE/d(multipoles) |
| `features` | `[n_atoms, n_widths * (l_max + 1)^2]` | V (angstrom) | projections on Gaussian orbitals |
| `external_field` | `[n_systems, 3]` | V/angstrom | uniform field; a charge q feels the force q E |
| `external_potential` | `[n_systems]` | V | uniform potential |
| `total_charge` | `[n_systems]` | e | |
| `frac` | `[n_atoms, 3]` float64 | turns | fractional coordinates |
| `edge_index` | `[2, n_edges]` int64 | | sender, receiver |

Rows of multipoles and features are ordered by l first, then width, then m. In the public API, l = 1 is
Cartesian, `[q, d_x, d_y, d_z]`; at the interface to MACE it has e3nn's order `[q, d_y, d_z, d_x]`. Every
function that takes rows says which order it uses.
"""

from typing import Literal

from torch import Tensor

MultipoleOrder = Literal["cartesian", "e3nn"]
Normalization = Literal["multipoles", "receiver"]
BoundaryName = Literal[
    "auto", "periodic", "slab", "molecule_in_box", "open", "pbc", "mixed_periodic", "realspace", "separate"
]
Compat = Literal["graph_longrange", "les"]

# indices of x, y, z in e3nn's (y, z, x), and the inverse
CARTESIAN_FROM_E3NN = (2, 0, 1)
# the same for rows of multipoles: [q, d_y, d_z, d_x, ...] -> [q, d_x, d_y, d_z, ...]; quadrupoles do not
# change
CARTESIAN_ROWS_FROM_E3NN = (0, 3, 1, 2, 4, 5, 6, 7, 8)
E3NN_ROWS_FROM_CARTESIAN = (0, 2, 3, 1, 4, 5, 6, 7, 8)
E3NN_FROM_CARTESIAN = (1, 2, 0)

__all__ = [
    "CARTESIAN_FROM_E3NN",
    "CARTESIAN_ROWS_FROM_E3NN",
    "E3NN_FROM_CARTESIAN",
    "E3NN_ROWS_FROM_CARTESIAN",
    "BoundaryName",
    "Compat",
    "MultipoleOrder",
    "Normalization",
    "Tensor",
]
