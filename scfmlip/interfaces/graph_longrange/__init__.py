"""
Modules with graph-longrange's names, arguments and results, on our Coulomb operator.

Change only the import in a script: constructor arguments and calls of graph-longrange 0.4.0 and 0.4.4 are
both supported. Results are those of `Coulomb(compat="graph_longrange")`, equal to that package's, in O(atoms
+ wave vectors) memory. The cell is computed from the wave vectors, or passed as ``cell``. The package's other
modules, such as those for external sources, work with these modules as with its own.
"""

from .cells import cells_from_wave_vectors
from .modules import (
    GTOElectrostaticEnergy,
    GTOElectrostaticFeatures,
    GTOElectrostaticFeaturesMultiChannel,
)

__all__ = [
    "GTOElectrostaticEnergy",
    "GTOElectrostaticFeatures",
    "GTOElectrostaticFeaturesMultiChannel",
    "cells_from_wave_vectors",
]
