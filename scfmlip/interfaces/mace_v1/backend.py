"""
`Backend` implements MACE v1's kernel contract (``mace_core.kernels.protocol.KernelBackend``).

The contract: https://github.com/ACEsuit/mace/issues/1560 and 1564; its template for backends: issue 1568.
"""

# mace_core is part of MACE v1
# pyright: reportMissingImports=false

from __future__ import annotations

import numpy as np
import torch
from mace_core.clebsch_gordan.irreps import Irreps
from mace_core.clebsch_gordan.real_basis import wigner_3j_real
from mace_core.clebsch_gordan.reduced_basis import (
    full_symmetric_tensor_product_basis,
    reduced_symmetric_tensor_product_basis,
)
from mace_core.kernels.canonical import (
    KERNEL_SPEC_VERSION,
    contraction_path_labels,
    contraction_path_order,
)
from mace_core.kernels.capabilities import BackendCapabilities, UnsupportedDescriptorError
from mace_core.kernels.descriptors import (
    ChannelwiseTPConvDescriptor,
    Descriptor,
    FullyConnectedTPDescriptor,
    LinearDescriptor,
    RadialBasisDescriptor,
    SegmentReduceDescriptor,
    SphericalHarmonicsDescriptor,
    SymmetricContractionDescriptor,
)
from mace_core.kernels.paths import channelwise_paths
from mace_core.kernels.protocol import DISPATCHED_OPS

from scfmlip_kernels import ChannelwiseProduct, ProductPath

from .linear import Linear, SkipProduct
from .products import Contraction, Convolution, SegmentSum
from .weighted import Irreps as Terms

# version of the contract that this module implements
SPEC_VERSION = "1.0"

if not (
    hasattr(ChannelwiseTPConvDescriptor, "num_features") and hasattr(BackendCapabilities, "native_layout")
):
    raise ImportError(
        "scfmlip's backend needs a mace_core whose convolutions have num_features and whose features have a "
        "native_layout; this version is older: install a newer MACE"
    )

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_BASES = {
    "reduced": reduced_symmetric_tensor_product_basis,
    "full": full_symmetric_tensor_product_basis,
}


def _terms(irreps: str) -> Terms:
    return tuple((mul, ir.degree, ir.parity) for mul, ir in Irreps.parse(irreps).terms)


def declined(descriptor: Descriptor) -> str | None:
    """Why no operator supports this, beyond the lists of `Capabilities`; None if one does."""
    if isinstance(descriptor, ChannelwiseTPConvDescriptor):
        node, edge, out = descriptor.irreps_node, descriptor.irreps_edge, descriptor.irreps_out
        if any(mul != 1 for mul, *_ in (*_terms(node), *_terms(edge))):
            return "a convolution takes one copy of each irrep of a node's channel and of an edge"
        if not channelwise_paths(node, edge, out):
            return f"no product of {node} and {edge} reaches {out}"
    if isinstance(descriptor, SymmetricContractionDescriptor):
        if any(mul != 1 for mul, *_ in _terms(descriptor.irreps_out)):
            return "a contraction gives one copy of each irrep in each channel"
        if not descriptor.path_count:
            return f"no power of {descriptor.irreps_in} reaches {descriptor.irreps_out}"
    if isinstance(descriptor, FullyConnectedTPDescriptor) and any(
        term[1:] != (0, 1) for term in _terms(descriptor.irreps_in2)
    ):
        return f"the second factor must be even scalars, not {descriptor.irreps_in2}"
    if isinstance(descriptor, SegmentReduceDescriptor) and descriptor.reduction != "sum":
        return f"segments are reduced by sum, not by {descriptor.reduction}"
    return None


class Capabilities(BackendCapabilities):
    """The contract's lists of capabilities, restricted by `declined`."""

    def supports(self, descriptor: Descriptor) -> bool:
        """Whether `Backend` can build this."""
        return super().supports(descriptor) and declined(descriptor) is None


class Backend:
    """
    MACE v1's operations on our operators: Triton on a GPU, fast PyTorch on a CPU, float32 and float64.

    Every ``make_*`` takes the contract's descriptor of that operation and returns a module in the
    descriptor's precision and layout, see `linear` and `products`.

    Raises:
        UnsupportedDescriptorError: from every ``make_*``, if ``capabilities().supports`` is False.
    """

    name = "scfmlip"

    def capabilities(self) -> Capabilities:
        """All operations, both layouts and bases, twice differentiable."""
        return Capabilities(
            ops=DISPATCHED_OPS,
            devices=frozenset({"cpu", "cuda"}),
            dtypes=frozenset(_DTYPES),
            activation_layouts=frozenset({"mul_ir", "ir_mul"}),
            native_layout="ir_mul",
            bases=frozenset(_BASES),
            supports_double_backward=True,
            spec_version=SPEC_VERSION,
        )

    def _check(self, descriptor: Descriptor) -> None:
        reason = declined(descriptor)
        if reason is not None:
            raise UnsupportedDescriptorError(f"backend {self.name!r} does not build {descriptor!r}: {reason}")
        self.capabilities().require(descriptor, self.name)

    def make_linear(self, descriptor: LinearDescriptor) -> Linear:
        """A linear map, with a bias on even scalars if the descriptor says so."""
        d = descriptor
        self._check(d)
        return Linear(_terms(d.irreps_in), _terms(d.irreps_out), d.has_bias, d.layout, _DTYPES[d.precision])

    def make_channelwise_tp_conv(self, descriptor: ChannelwiseTPConvDescriptor) -> Convolution:
        """The messages' product, summed at the nodes, with separate paths in the contract's order."""
        d = descriptor
        self._check(d)
        node, edge = _terms(d.irreps_node), _terms(d.irreps_edge)
        paths = []
        for path in channelwise_paths(d.irreps_node, d.irreps_edge, d.irreps_out):
            l, dim = path.irrep.degree, path.irrep.dimension
            table = wigner_3j_real(l, node[path.node_term][1], edge[path.edge_term][1]) * dim**0.5
            entries = tuple((int(i), int(j), int(k), float(table[k, i, j])) for k, i, j in np.argwhere(table))
            paths.append(ProductPath(path.node_term, path.edge_term, entries, dim))
        x = tuple((d.num_features, 2 * l + 1) for _, l, _ in node)
        return Convolution(
            ChannelwiseProduct(x, tuple(2 * l + 1 for _, l, _ in edge), tuple(paths), d.layout)
        )

    def make_symmetric_contraction(self, descriptor: SymmetricContractionDescriptor) -> Contraction:
        """The many-body contraction over the basis the descriptor names."""
        d = descriptor
        self._check(d)
        out, first, n = _terms(d.irreps_out), {}, 0
        for _, irrep in Irreps.parse(d.irreps_out).terms:
            first[str(irrep)] = n
            n += irrep.dimension
        blocks = []
        for irrep, order in contraction_path_order(d.irreps_out, d.correlation):
            u = _BASES[d.basis](d.irreps_in, order, irrep)[irrep]
            blocks.append((first[irrep], torch.from_numpy(np.moveaxis(u, 0, -1).copy())))
        labels = contraction_path_labels(d.irreps_in, d.irreps_out, d.correlation, basis=d.basis)
        metadata = {"spec_version": KERNEL_SPEC_VERSION, "basis": d.basis, "paths": list(labels)}
        return Contraction(
            _terms(d.irreps_in),
            out,
            blocks,
            d.num_elements,
            d.num_features,
            d.layout,
            _DTYPES[d.precision],
            metadata,
        )

    def make_fully_connected_tp(self, descriptor: FullyConnectedTPDescriptor) -> SkipProduct:
        """The skip connection: features times even scalars."""
        d = descriptor
        self._check(d)
        n_scalars = sum(mul for mul, *_ in _terms(d.irreps_in2))
        return SkipProduct(
            _terms(d.irreps_in1), n_scalars, _terms(d.irreps_out), d.layout, _DTYPES[d.precision]
        )

    def make_segment_reduce(self, descriptor: SegmentReduceDescriptor) -> SegmentSum:
        """Sums into segments."""
        self._check(descriptor)
        return SegmentSum()

    def make_spherical_harmonics(self, descriptor: SphericalHarmonicsDescriptor) -> None:
        """None: the reference builds them."""

    def make_radial_basis(self, descriptor: RadialBasisDescriptor) -> None:
        """None: the reference builds it."""

    def make_interaction_layer(self, descriptors: tuple[Descriptor, ...]) -> None:
        """None: layers are built operation by operation."""
