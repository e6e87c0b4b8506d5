"""
The channel-wise convolution for `bench.tune`: a second layer of MACE-medium's shape, without e3nn.

Clebsch-Gordan coefficients are stood in for by numbers at places (m1, m2, m3) with |m3| = | |m1| +- |m2| |,
where real ones may be: about the same number of terms, and no physics.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scfmlip_kernels import ChannelwiseProduct, ProductPath, sort_edges
from scfmlip_kernels.registry import describe

Call = Callable[[], tuple[Tensor, ...]]

# derivatives in x, y, hidden and matrix that the kernels of a family compute
WANTED = {"radial_edges": [True, True, True, False], "radial_matrix": [False, False, False, True]}
NEIGHBOURS, HIDDEN = 50, 64


def _path(x: int, y: int, out: int) -> ProductPath:
    terms = [
        (i, j, k, 0.1 * (1 + (i + 2 * j + 3 * k) % 7))
        for i in range(2 * x + 1)
        for j in range(2 * y + 1)
        for k in range(2 * out + 1)
        if abs(k - out) in (abs(i - x) + abs(j - y), abs(abs(i - x) - abs(j - y)))
    ]
    return ProductPath(x, y, tuple(terms), 2 * out + 1)


def product(channels: int) -> ChannelwiseProduct:
    """Scalars and vectors times harmonics up to l = 3, ten paths as in MACE-medium's second layer."""
    paths = [_path(0, l, l) for l in range(4)]
    paths += [_path(1, y, out) for y, out in ((0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2))]
    return ChannelwiseProduct(((channels, 1), (channels, 3)), (1, 3, 5, 7), tuple(paths), "ir_mul")


def calls(n_nodes: int, channels: int, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """Values ("radial"), each family's derivatives, and "all" derivatives, of the same random inputs."""
    generator = torch.Generator().manual_seed(20261121)
    made = product(channels)
    n_edges = n_nodes * min(NEIGHBOURS, n_nodes)

    def normal(*shape: int) -> Tensor:
        # rounded, so that both precisions have the same numbers
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.float().to(device, dtype)

    sender, receiver = torch.randint(n_nodes, (2, n_edges), generator=generator).to(device)
    tables = (*sort_edges(sender, receiver, n_nodes).tables, describe(made))
    inputs = normal(n_nodes, made.x_dim), normal(n_edges, made.y_dim), normal(n_edges, HIDDEN)
    inputs = (*inputs, normal(HIDDEN, made.weight_numel) / HIDDEN**0.5)
    grad = normal(n_nodes, made.out_dim)
    backward = torch.ops.scfmlip.channelwise_conv_backward
    found: dict[str, Call] = {
        name: partial(backward, *inputs, grad, *tables, wanted)
        for name, wanted in {**WANTED, "all": [True] * 4}.items()
    }
    found["radial"] = lambda: (torch.ops.scfmlip.channelwise_conv(*inputs, *tables),)
    return found


def difference(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Largest difference of any result, over its largest value; those that were not asked for are empty."""
    pairs = [(a.double(), b.double()) for a, b in zip(got, want, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs)
