"""
Layouts of features, and weights in the format of MACE v1 checkpoints.

Features are ``[n, columns]``, irrep by irrep. Within an irrep either copies come first ("mul_ir") or
components ("ir_mul"). The second layout needs no transposition here.
"""

from __future__ import annotations

import torch
from torch import Tensor

# copies, degree and parity of each term
Irreps = tuple[tuple[int, int, int], ...]


def to_blocks(x: Tensor, irreps: Irreps, layout: str) -> list[Tensor]:
    """Split ``[n, columns]`` into ``[n, 2 l + 1, copies]`` for each term."""
    parts = x.split([mul * (2 * l + 1) for mul, l, _ in irreps], 1)
    if layout == "mul_ir":
        return [p.unflatten(1, (mul, 2 * l + 1)).mT for p, (mul, l, _) in zip(parts, irreps, strict=True)]
    return [p.unflatten(1, (2 * l + 1, mul)) for p, (mul, l, _) in zip(parts, irreps, strict=True)]


def from_blocks(blocks: list[Tensor], layout: str) -> Tensor:
    """The inverse of `to_blocks`."""
    return torch.cat([(b.mT if layout == "mul_ir" else b).flatten(1) for b in blocks], 1)


class Weighted(torch.nn.Module):
    """
    A module that stores, reads, writes and initialises its weights in the canonical layout.

    Attributes:
        weight: Parameter.
        scales: ``[...]`` float64 size of initial weights; broadcasts to ``weight``.
    """

    weight: torch.nn.Parameter
    scales: Tensor

    def initialize_weights(self, seed: int) -> None:
        """Draw normally distributed weights of size ``scales`` on the host; a bias becomes 0."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.weight.shape, generator=generator, dtype=torch.float64) * self.scales
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(drawn if name == "weight" else torch.zeros_like(parameter))

    def to_canonical(self) -> dict[str, Tensor]:
        """The weights by name, detached; they share memory with the parameters."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """
        Take over the weights of `to_canonical`, of this backend or another.

        Raises:
            KeyError: if a name is missing.
            ValueError: if a shape differs.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if state[name].shape != parameter.shape:
                    found, wanted = list(state[name].shape), list(parameter.shape)
                    raise ValueError(f"load_canonical: {name} must be {wanted}, got {found}")
                parameter.copy_(state[name])
