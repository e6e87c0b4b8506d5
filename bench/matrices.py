"""
Workloads for `bench.tune` besides lattice sums and convolutions: linear maps, networks, pairs of high rank.

Shapes are those of MACE-medium and MACE-POLAR. Inputs are rounded to float32, so that both precisions have
the same numbers, and a float32 result is judged by the float64 one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scfmlip_kernels import (
    Block,
    BlockMap,
    BlockPath,
    NormNetwork,
    block_linear,
    gaussian_pairs,
    indexed_linear,
    norm_network,
)
from scfmlip_kernels.lattice import monomial_count

Call = Callable[[], tuple[Tensor, ...]]

SPECIES = 10
# source rank and rank that second derivatives of dipoles and quadrupoles need most
HIGH_RANKS = ((1, 3), (2, 2), (2, 4))


class _Inputs:
    """Random numbers, the same on every device and in both precisions."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(20261121)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers, rounded to float32."""
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return values.float().to(self.device, self.dtype)

    def species(self, n_rows: int) -> Tensor:
        """One of each row."""
        return torch.randint(SPECIES, (n_rows,), generator=self.generator).to(self.device)


def _slopes(
    function: Callable[..., Tensor], leaves: tuple[Tensor, ...], weight: Tensor
) -> tuple[Tensor, ...]:
    leaves = tuple(t.detach().requires_grad_() for t in leaves)
    return torch.autograd.grad(function(*leaves), leaves, weight)


def linear_maps(n_rows: int, channels: int, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """Values and derivatives of maps by species, and of maps between scalars and vectors of all rows."""
    made, root = _Inputs(dtype, device), channels**-0.5
    found: dict[str, Call] = {}
    index = made.species(n_rows)
    for components in (1, 3):
        x = made.normal(n_rows, components, channels)
        weights = root * made.normal(SPECIES, channels, channels)
        grad = made.normal(n_rows, components, channels)
        function = partial(indexed_linear, index=index)
        found[f"species, {components}"] = partial(lambda f, *t: (f(*t),), function, x, weights)
        found[f"species, {components}, slopes"] = partial(_slopes, function, (x, weights), grad)
    blocks = (Block(0, channels, 1), Block(channels, channels, 3))
    paths = tuple(BlockPath(i, i, i * channels**2, (0, channels, 1), root) for i in (0, 1))
    linear = BlockMap(blocks, blocks, paths, 2 * channels**2)
    x, weights = made.normal(n_rows, linear.x_dim), made.normal(linear.n_weights)
    found["blocks"] = lambda: (block_linear(x, weights, linear),)
    return found


def networks(n_rows: int, hidden: int, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """A radial network, and its derivatives in the inputs, which forces need."""
    made = _Inputs(dtype, device)
    network = NormNetwork(8, hidden, 3, hidden + 1, "ones")
    x, grad = made.normal(n_rows, network.n_in), made.normal(n_rows, network.n_out)
    parameters = made.normal(network.n_parameters) * hidden**-0.5

    def function(x: Tensor) -> Tensor:
        return norm_network(x, parameters, network)

    return {"network": lambda: (function(x),), "network, slopes": lambda: _slopes(function, (x,), grad)}


def high_pairs(n_atoms: int, _: int, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """Sums over all pairs of one system, of the ranks that kernels are generated for."""
    made = _Inputs(dtype, device)
    positions = made.normal(n_atoms, 3) * (n_atoms / 0.1) ** (1 / 3) / 2
    widths, ptr = torch.tensor([2.1], dtype=torch.float64), torch.tensor([0, n_atoms])
    found: dict[str, Call] = {}
    for source_rank, rank in HIGH_RANKS:
        moments = made.normal(n_atoms, 1, 1, monomial_count(source_rank))
        run = partial(gaussian_pairs, positions, moments, widths, ptr, rank)
        found[f"sources of rank {source_rank}, rank {rank}"] = partial(lambda f: (f(),), run)
    return found


# by family: its calls, and the sizes (rows or atoms, channels) it is judged by
WORKLOADS: dict[str, tuple[Callable[..., dict[str, Call]], tuple[tuple[int, int], ...]]] = {
    "indexed_linear": (linear_maps, ((1000, 128), (5000, 128))),
    "norm_network": (networks, ((10000, 64), (60000, 64))),
    "high_pairs": (high_pairs, ((200, 1), (2000, 1))),
}
# and to try the script
SMALL = {"indexed_linear": (7, 16), "norm_network": (9, 16), "high_pairs": (5, 1)}


def calls(family: str, quick: bool, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """All calls of a family, by name and size."""
    make, sizes = WORKLOADS[family]
    return {
        f"{name}, {size[0]}": call
        for size in ((SMALL[family],) if quick else sizes)
        for name, call in make(*size, dtype, device).items()
    }


def difference(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Largest difference of any result, over its largest value; infinite where there is no number."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        error = float((a.detach().double() - b.detach()).abs().max() / b.abs().max())
        worst = max(worst, error) if error == error else float("inf")
    return worst
