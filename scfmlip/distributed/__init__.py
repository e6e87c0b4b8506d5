"""One system spread over several processes: communication, sums over all atoms, and ghosts of neighbours."""

from .collectives import all_reduce, equal_parts, share_gradient, sum_gradient, sum_of_equals
from .communicator import Communicator, SingleProcess, Traffic
from .domain import Domain
from .halo import Halo, build_halo
from .nearby import halo_of_all, halo_within
from .segments import SharedSegments, shared_segments

__all__ = [
    "Communicator",
    "Domain",
    "Halo",
    "SharedSegments",
    "SingleProcess",
    "Traffic",
    "all_reduce",
    "build_halo",
    "equal_parts",
    "halo_of_all",
    "halo_within",
    "share_gradient",
    "shared_segments",
    "sum_gradient",
    "sum_of_equals",
]
