"""The part of a system that a rank owns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .communicator import Communicator
from .halo import Halo


@dataclass(frozen=True)
class Domain:
    """
    What a model has to know of a system whose atoms several ranks share.

    The batch it comes with holds one system, of which this rank has its own atoms. Senders of its edges count
    the ghosts behind them. Numbers of the system are the same on every rank.

    Attributes:
        halo: Whose ghosts other ranks' atoms are.
        node_attrs: ``[n_all, n_elements]`` one-hot elements of own atoms and ghosts.
    """

    halo: Halo
    node_attrs: Tensor

    @property
    def communicator(self) -> Communicator:
        """The ranks."""
        return self.halo.communicator

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.halo.communicator.size
