"""
Modules with graph-longrange's names, arguments and numbers, on our Coulomb operator.

Change the import and keep the script: constructor arguments and calls of graph-longrange 0.4.0 and 0.4.4
are both understood. Results are `Coulomb(compat="graph_longrange")`'s: equal to that package's, in O(atoms +
wave vectors) memory. The cell is read off the wave vectors, or passed as ``cell`` to save that. Its other
modules, such as those of external sources, take these as they take its own.
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
