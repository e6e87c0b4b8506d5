"""The amplification of perturbations by self-consistent updates, as a training penalty."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..base import System


def amplification(update: Callable[[Tensor], Tensor], state: Tensor, system: System) -> Tensor:
    """
    ``[n_systems]`` amplification of a random perturbation u of the state, ``|J^T u|^2 / |u|^2``.

    Its mean over u equals that of ``|J u|^2 / |u|^2``, which is below 1 if plain iterations converge.
    """
    with torch.enable_grad():
        state = state if state.requires_grad else state.detach().requires_grad_()
        direction = torch.randn_like(state)
        (answer,) = torch.autograd.grad(update(state), state, direction, create_graph=True)
    return system.sum((answer**2).sum(1)) / system.sum((direction**2).sum(1))
