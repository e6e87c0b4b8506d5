"""How much memory a step of a model takes, before it is taken."""

from __future__ import annotations

from typing import Any

import torch

from ..devices import free_memory

# numbers kept for an edge per feature of the radial networks, for an atom per component of the messages, and
# for an edge beside them: its vector, spherical harmonics, their gradients. Fitted to 28 measurements on a
# CPU, with forces (profiling/reports/2026-11-29-dynamics.md), whose 0.87 to 1.23 fold they give above 150 MiB
_PER_RADIAL, _PER_COMPONENT, _PER_EDGE = 1.45, 2.6, 135.0
# how far an estimate may be off, and bytes that always fit
_ERROR, _SURELY_FREE = 1.5, 2**28


def step_memory(model: Any, n_atoms: int, n_edges: int) -> float | None:
    """
    Bytes that energy and forces of a network of MACE's kind take at most, within about a factor of two.

    ``itemsize (n_edges (1.45 R + 135) + 2.6 n_atoms C)``, where R counts the hidden features of all layers'
    radial networks, and C the components of all layers' messages. What wave vectors or a mesh take comes on
    top of it (`scfmlip.electrostatics` refuses those that do not fit), and so does a dense charge solve.

    Args:
        model: MACE of mace-torch, accelerated or not, or a model of `scfmlip.models`.
        n_atoms: Atoms of the batch.
        n_edges: Directed pairs within the cutoff, of the whole batch.

    Returns:
        Bytes, or None for a network of another kind.

    Example:
        >>> import scfmlip
        >>> from scfmlip.data import path
        >>> from scfmlip.mace_torch.memory import step_memory
        >>> model = scfmlip.load(path("models/al_water-fixed_point.safetensors"))
        >>> step_memory(model, 1_000_000, 40_000_000) > 1e9  # a million atoms
        True
    """
    network: Any = getattr(getattr(model, "backbone", model), "mace", model)
    layers = getattr(network, "interactions", None)
    if layers is None:
        return None
    radial = components = 0
    for layer in layers:
        weights = getattr(layer, "conv_tp_weights", None)
        messages = getattr(getattr(layer, "conv_tp", None), "irreps_out", None)
        if weights is None or messages is None:
            return None
        matrices = [p.shape for p in weights.parameters() if p.ndim == 2]
        # the last one gives the convolution's weights, which are not kept; some networks hold transposes
        inward = 0 if matrices[-1][1] == layer.conv_tp.weight_numel else 1
        radial += sum(shape[inward] for shape in matrices[1:])
        components += messages.dim
    size = next(model.parameters()).element_size()
    return size * (n_edges * (_PER_RADIAL * radial + _PER_EDGE) + _PER_COMPONENT * n_atoms * components)


class MemoryCheck:
    """
    Refuses steps that cannot fit into memory, for one model.

    Looks at free memory only where a step is larger than all before.

    Args:
        model: As for `step_memory`.
        device: Where it runs.

    Attributes:
        needed: Bytes that the last step takes about; None before it and if unknown.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self.needed: float | None = None
        self._largest = 0.0

    def __call__(self, n_atoms: int, n_edges: int) -> None:
        """
        Look at the next step; arguments as of `step_memory`.

        Raises:
            ValueError: if it needs far more memory than there is; says how much, and what to do.
        """
        needed = self.needed = step_memory(self.model, n_atoms, n_edges)
        if needed is None or needed < max(_SURELY_FREE, 1.1 * self._largest):
            return
        free = free_memory(self.device)
        if self.device.type == "cuda":
            # what torch holds and does not use
            free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if needed > _ERROR * free:
            raise ValueError(
                f"{n_atoms} atoms with {n_edges} pairs within the cutoff take about {needed / 2**30:.3g} GiB "
                f"of memory on {self.device}, {free / 2**30:.3g} GiB are free: take fewer atoms, float32, a "
                "device with more memory, or several ranks on several machines (scfmlip lammps)"
            )
        self._largest = needed
