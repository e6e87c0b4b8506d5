"""MACE's symmetric contraction on our operator, and species from one-hot attributes."""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from mace.modules.symmetric_contraction import SymmetricContraction
from torch import Tensor

from scfmlip_kernels import SymmetricPolynomial, symmetric_contraction, take_columns
from scfmlip_kernels.identity import ByIdentity

from .swapped import Swapped, warn_fallback


def one_hot_index(attributes: Tensor, module: torch.nn.Module) -> Tensor | None:
    """
    Species of each row of one-hot attributes ``[n_atoms, n_species]``; None if a row is something else.

    The values are read in eager mode only, and on a GPU, where this synchronises, only in a module's first
    call: MACE's attributes are one-hot. Attributes that require a gradient also give None, because an index
    has no gradient. If the result is None, a warning says once that the module runs its original code.
    """
    if attributes.requires_grad:
        warn_fallback(module, "node_attrs require a gradient, which the species of an atom do not have")
        return None
    on_cpu = attributes.device.type == "cpu"
    check = not torch.compiler.is_compiling() and (on_cpu or not hasattr(module, "_scfmlip_seen"))
    if check and not on_cpu:
        module._scfmlip_seen = True
    index = _species.get((attributes,), check, lambda: _species_of(attributes, check))
    if check and not on_cpu:  # the next calls ask without the check
        found = index
        _species.get((attributes,), False, lambda: found)
    if index is None:
        warn_fallback(module, "node_attrs are not one-hot")
    return index


_species: ByIdentity[Tensor | None] = ByIdentity(4)


def _species_of(attributes: Tensor, check: bool) -> Tensor | None:
    top, index = attributes.detach().max(-1)
    if check:
        total = attributes.detach().abs().sum(-1)
        if not bool(((top == 1) & (total == 1)).all()):
            return None
    return index


def _u_tensors(module: SymmetricContraction) -> dict[str, Tensor]:
    """A contraction's generalised Clebsch-Gordan coefficients, by their names in the state dict."""
    return {name: buffer for name, buffer in module.named_buffers() if "U_matrix_" in name}


def symmetric_polynomial(
    module: SymmetricContraction, tensors: Mapping[str, Tensor] | None = None
) -> SymmetricPolynomial:
    """
    The polynomial of all contractions of a module; weights in the order of `FastSymmetricContraction`.

    ``tensors`` are the generalised Clebsch-Gordan coefficients by name; the module's own if None.
    """
    found = _u_tensors(module) if tensors is None else tensors
    blocks_, first = [], 0
    for i, contraction in enumerate(module.contractions):
        dim = 1
        for degree in _degrees(contraction):
            u = found[f"contractions.{i}.U_matrix_{degree}"].detach().to("cpu", torch.float64)
            u = u if u.ndim == degree + 2 else u[None]
            blocks_.append((first, u))
            dim = u.shape[0]
        first += dim
    return SymmetricPolynomial.from_dense(blocks_)


def _degrees(contraction: torch.nn.Module) -> list[int]:
    return list(range(contraction.correlation, 0, -1))


class FastSymmetricContraction(Swapped, SymmetricContraction):
    """The contraction of all degrees and outputs as one polynomial, with the species gathered inside."""

    _scfmlip_original = SymmetricContraction

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load weights, and rebuild the polynomial if the file's coefficients differ (another basis)."""
        mine = _u_tensors(self)
        given = {name: state_dict.get(prefix + name, tensor).to(tensor) for name, tensor in mine.items()}
        same = all(given[name].shape == tensor.shape for name, tensor in mine.items())
        if same and not all(torch.equal(given[name], tensor) for name, tensor in mine.items()):
            self._scfmlip_polynomial = symmetric_polynomial(self, given)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, *args: Any, **kwargs: Any) -> FastSymmetricContraction:
        """Convert, and rebuild the polynomial, because another dtype rounds the coefficients."""
        before = {tensor.dtype for tensor in _u_tensors(self).values()}
        super()._apply(*args, **kwargs)
        if {tensor.dtype for tensor in _u_tensors(self).values()} != before:
            self.follow_coefficients()
        return self

    def follow_coefficients(self) -> None:
        """Rebuild the polynomial from the current coefficients."""
        self._scfmlip_polynomial = symmetric_polynomial(self)

    @property
    def _scfmlip_whole(self) -> FastSymmetricContraction:
        """The module itself, under a name that a traced graph can call."""
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x [n_atoms, n_channels, n_inputs]``, one-hot ``y [n_atoms, n_species]`` -> ``[n_atoms, .]``."""
        if isinstance(x, torch.fx.Proxy):
            # mace-torch traces contractions before it compiles a model; this one stays one call
            traced: Any = x.tracer.create_proxy("call_module", "_scfmlip_whole", (x, y), {})
            return traced
        index = one_hot_index(y, self)
        if index is None:
            return SymmetricContraction.forward(self, x, y)
        weights = torch.cat([w for c in self.contractions for w in (c.weights_max, *c.weights)], 1)
        out = symmetric_contraction(x, weights, index, self._scfmlip_polynomial)
        if out.is_cuda and not torch.compiler.is_compiling():
            return take_columns(out.flatten(1), _part_columns(out.shape[1], self._scfmlip_dims))
        return torch.cat([part.flatten(1) for part in out.split(self._scfmlip_dims, -1)], -1)


@lru_cache(maxsize=64)
def _part_columns(n_channels: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Columns of ``[n_channels, sum(dims)]`` rows, part after part."""
    columns, first, width = [], 0, sum(dims)
    for dim in dims:
        columns += [u * width + first + d for u in range(n_channels) for d in range(dim)]
        first += dim
    return tuple(columns)
