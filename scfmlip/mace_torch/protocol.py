"""What interfaces need to know about a model before they call it, for mace-torch's models and ours."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .inputs import INPUTS

# of each model the tensors that were read, and what they said
_READ: WeakKeyDictionary[Any, tuple[tuple, tuple[tuple[int, ...], float]]] = WeakKeyDictionary()


@runtime_checkable
class DensityModel(Protocol):
    """A model that describes itself: one of `scfmlip.models`, or any other with these members."""

    @property
    def required_info(self) -> tuple[str, ...]:
        """Keys of ``atoms.info`` that a frame needs."""
        ...

    @property
    def pads_cell(self) -> bool:
        """Whether batches need mace-torch's long cells along open directions."""
        ...

    @property
    def heads(self) -> list[str]:
        """Names of the energy heads."""
        ...

    @property
    def has_charges(self) -> bool:
        """Whether the model has a density."""
        ...

    def evaluate_density(self, batch: dict[str, Tensor]) -> Any:
        """Outputs without derivatives, and the density."""
        ...


def is_density_model(model: Any) -> bool:
    """
    Whether a model is a `DensityModel`, like those of `scfmlip.models`; the others are mace-torch's.

    Example:
        >>> import torch
        >>> is_density_model(torch.nn.Linear(1, 1))
        False
    """
    return isinstance(model, DensityModel)


def is_a(model: torch.nn.Module, *names: str) -> bool:
    """Whether a model is of one of mace-torch's classes, accelerated or not."""
    return any(base.__name__ in names for base in type(model).__mro__)


def elements_and_cutoff(model: Any) -> tuple[tuple[int, ...], float]:
    """
    Atomic numbers that a model knows, and its cutoff in angstrom; read again only if these tensors change.

    On a GPU each would be a wait in every step.

    Example:
        >>> import torch
        >>> model = torch.nn.Module()
        >>> model.atomic_numbers, model.r_max = torch.tensor([1, 8]), torch.tensor(5.0)
        >>> elements_and_cutoff(model)
        ((1, 8), 5.0)
    """
    parts = tuple(torch.as_tensor(part) for part in (model.atomic_numbers, model.r_max))
    known = _READ.get(model)
    if any(part.is_inference() for part in parts):  # which do not say whether they have changed
        known = None
    elif known is not None and known[0][1:] == tuple(_state(part) for part in parts):
        return known[1]
    found = tuple(int(z) for z in parts[0].tolist()), float(parts[1])
    if not any(part.is_inference() for part in parts):
        _READ[model] = (parts, *(_state(part) for part in parts)), found
    return found


def _state(tensor: Tensor) -> tuple:
    """What changes where the values of a tensor that is alive do."""
    return tensor.data_ptr(), tensor._version, tensor.device, tensor.shape, tensor.dtype


def embedding_specs(model: torch.nn.Module) -> dict[str, Any]:
    """mace-torch's description of additional inputs that a model embeds, by name."""
    return dict(getattr(model, "embedding_specs", None) or {})


def required_info(model: torch.nn.Module) -> tuple[str, ...]:
    """Keys of ``atoms.info`` that the model's energy depends on and that a frame must have."""
    if isinstance(model, DensityModel):
        return model.required_info
    needed = ("total_charge", "total_spin") if is_a(model, "PolarMACE") else embedding_specs(model)
    return tuple(INPUTS[which].names[0] for which in needed if which in INPUTS)


def pads_cell(model: torch.nn.Module) -> bool:
    """Whether the model is evaluated in the long padded cells of mace-torch's electrostatics."""
    return model.pads_cell if isinstance(model, DensityModel) else is_a(model, "PolarMACE", "MACELES")
