"""The terms of a symmetric contraction, and polynomials derived from them."""

import math
from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..registry import describe, described

Term = tuple[tuple[int, ...], int, int, float]

# relative to the largest coefficient: smaller ones are the remainder of terms that cancel
_CANCELLED = 1e-13
# relative tolerances: weights whose terms depend linearly on others', and tiny coefficients, are dropped
_DEPENDENT = {torch.float32: 1e-6, torch.float64: 1e-12}
_NEGLIGIBLE = {torch.float32: 1e-7, torch.float64: 1e-14}


class SymmetricPolynomial(NamedTuple):
    """
    A polynomial in the components of x, linear in weights.

    Attributes:
        n_inputs: Components of x.
        n_outputs: Components of the result.
        n_weights: Weights per species and channel, for all outputs and degrees together.
        terms: ``(sorted indices of x, number of the weight, component of the output, coefficient)``; no two
            terms agree in the first three.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import SymmetricPolynomial
        >>> norm = SymmetricPolynomial.from_dense([(0, torch.eye(3).view(1, 3, 3, 1))])  # x.x of a vector
        >>> norm.terms  # factors, weight, output, coefficient
        (((0, 0), 0, 0, 1.0), ((1, 1), 0, 0, 1.0), ((2, 2), 0, 0, 1.0))
    """

    n_inputs: int
    n_outputs: int
    n_weights: int
    terms: tuple[Term, ...]

    @classmethod
    def from_dense(cls, blocks: list[tuple[int, Tensor]]) -> "SymmetricPolynomial":
        """
        Build the polynomial from dense coefficient tensors.

        Args:
            blocks: First component of the output and coefficients ``U``, float64
                ``[n_components, n_inputs, ..., n_inputs, n_paths]`` of degree ``ndim - 2``. They need not be
                symmetric in the inputs. Weights are numbered block by block, then path by path.

        Raises:
            ValueError: without blocks, or for blocks whose shapes do not match.
        """
        if not blocks:
            raise ValueError("SymmetricPolynomial: there must be at least one block")
        n_inputs, n_outputs, n_weights = blocks[0][1].shape[1], 0, 0
        terms: list[Term] = []
        for first, u in blocks:
            if u.ndim < 3 or any(n != n_inputs for n in u.shape[1:-1]):
                shape = f"[n_components, {n_inputs}, ..., {n_inputs}, n_paths]"
                raise ValueError(f"SymmetricPolynomial: a block must be {shape}, got {list(u.shape)}")
            u = u.detach().to("cpu", torch.float64)
            merged: dict[tuple[int, int, tuple[int, ...]], float] = defaultdict(float)
            places = torch.nonzero(u)
            for (output, *factors, path), value in zip(places.tolist(), u[*places.T].tolist(), strict=True):
                merged[path, output, tuple(sorted(factors))] += value
            limit = _CANCELLED * max(map(abs, merged.values()), default=0.0)
            terms += [
                (factors, n_weights + path, first + output, value)
                for (path, output, factors), value in sorted(merged.items())
                if abs(value) > limit
            ]
            n_outputs = max(n_outputs, first + u.shape[0])
            n_weights += u.shape[-1]
        return cls(n_inputs, n_outputs, n_weights, tuple(terms))

    @classmethod
    def from_json(cls, n_inputs: int, n_outputs: int, n_weights: int, terms: list) -> "SymmetricPolynomial":
        """See `registry`."""
        return cls(n_inputs, n_outputs, n_weights, tuple((tuple(f), w, o, v) for f, w, o, v in terms))

    def check(self) -> None:
        """Raise ValueError where the description contradicts itself."""
        n_inputs, n_outputs, n_weights, terms = self
        if n_inputs < 1 or n_outputs < 1:
            raise ValueError(f"SymmetricPolynomial: {n_inputs} inputs, {n_outputs} outputs")
        seen = set()
        for factors, weight, output, value in terms:
            inside = all(0 <= i < n_inputs for i in factors)
            if not (factors and inside and 0 <= weight < n_weights and 0 <= output < n_outputs):
                raise ValueError(f"SymmetricPolynomial: term {(factors, weight, output)} is out of range")
            if list(factors) != sorted(factors):
                raise ValueError(f"SymmetricPolynomial: factors {factors} are not sorted")
            if not math.isfinite(value):
                raise ValueError(f"SymmetricPolynomial: a term has the coefficient {value}")
            seen.add((factors, weight, output))
        if len(seen) != len(terms):
            raise ValueError("SymmetricPolynomial: a term occurs twice")

    @property
    def degree(self) -> int:
        """Largest number of factors x of a term."""
        return max((len(factors) for factors, *_ in self.terms), default=1)


def polynomial_of(text: str) -> SymmetricPolynomial:
    """The polynomial that a graph holds as text, see `registry`."""
    return described(text, SymmetricPolynomial)


@lru_cache(maxsize=256)
def directional(text: str) -> str:
    """
    The derivative along a direction, as a polynomial in x and the direction side by side.

    Its value is ``sum_i d p / d x_i y_i``, with ``y_i`` its input ``n_inputs + i``.
    """
    p = polynomial_of(text)
    terms = []
    for factors, weight, output, value in p.terms:
        for i in sorted(set(factors)):
            rest = list(factors)
            rest.remove(i)
            terms.append(((*rest, p.n_inputs + i), weight, output, value * factors.count(i)))
    return describe(SymmetricPolynomial(2 * p.n_inputs, p.n_outputs, p.n_weights, tuple(terms)))


class WeightReduction(NamedTuple):
    """
    New weights as linear combinations of the given ones.

    Attributes:
        n_new: Number of new weights.
        n_weights: Number of given weights.
        entries: ``(new weight, weight, coefficient)``, nonzero ones only.
    """

    n_new: int
    n_weights: int
    entries: tuple[tuple[int, int, float], ...]

    @classmethod
    def from_json(cls, n_new: int, n_weights: int, entries: list) -> "WeightReduction":
        """See `registry`."""
        return cls(n_new, n_weights, tuple((new, weight, value) for new, weight, value in entries))

    def check(self) -> None:
        """Checks nothing: only `reduction` makes these."""


class Reduction(NamedTuple):
    """
    The same polynomial with fewer weights.

    Attributes:
        polynomial: Text of the polynomial in the new weights.
        weights: Text of the `WeightReduction`.
    """

    polynomial: str
    weights: str


# numpy, because this may run while a compiler traces, when torch operators compute nothing
@lru_cache(maxsize=256)
def reduction(text: str, dtype: torch.dtype) -> Reduction | None:
    """
    Drop weights whose terms are linear combinations of other weights' terms; None if there are no such
    weights.

    Couplings of equal inputs through different intermediates give such weights; after merging permutations of
    the inputs, most weights are redundant. What counts as zero depends on the dtype of the arithmetic, so
    that float64 reproduces coefficients that were rounded to float32 as they are.
    """
    p = polynomial_of(text)
    limit = _NEGLIGIBLE[dtype] * max((abs(value) for *_, value in p.terms), default=0.0)
    terms = [term for term in p.terms if abs(term[3]) > limit]
    if not terms:
        return None
    columns: dict[tuple[tuple[int, ...], int], int] = {}
    for factors, _, output, _ in terms:
        columns.setdefault((factors, output), len(columns))
    dense = np.zeros((p.n_weights, len(columns)))
    for factors, weight, output, value in terms:
        dense[weight, columns[factors, output]] = value
    chosen = _independent_rows(dense, _DEPENDENT[dtype])
    if len(chosen) == p.n_weights and len(terms) == len(p.terms):
        return None
    place = {weight: n for n, weight in enumerate(chosen)}
    matrix = np.linalg.lstsq(dense[chosen].T, dense.T, rcond=None)[0]
    matrix[np.abs(matrix) < _NEGLIGIBLE[torch.float64]] = 0
    kept = tuple((f, place[w], o, v) for f, w, o, v in terms if w in place)
    new, given = np.nonzero(matrix)
    entries = tuple(zip(new.tolist(), given.tolist(), matrix[new, given].tolist(), strict=True))
    return Reduction(
        describe(SymmetricPolynomial(p.n_inputs, p.n_outputs, len(chosen), kept)),
        describe(WeightReduction(len(chosen), p.n_weights, entries)),
    )


def _independent_rows(dense: np.ndarray, tolerance: float) -> list[int]:
    """Rows that span all others, chosen by largest remainder as in a pivoted QR."""
    rest, chosen = dense.copy(), []
    limit = tolerance * max(np.linalg.norm(dense, axis=1), default=0.0)
    while len(chosen) < len(dense):
        norms = np.linalg.norm(rest, axis=1)
        best = int(norms.argmax())
        if norms[best] <= limit:
            break
        direction = rest[best] / norms[best]
        chosen.append(best)
        for _ in range(2):  # the second pass removes what rounding left
            rest -= np.outer(rest @ direction, direction)
        rest[best] = 0
    return sorted(chosen)


# a graph holds both texts: rounding on another machine might select other weights
@torch.compiler.assume_constant_result
def weight_reduction(text: str, dtype: torch.dtype) -> str:
    """Text of the `WeightReduction` to the fewest weights; empty if none can be dropped."""
    found = reduction(text, dtype)
    return "" if found is None else found.weights


@torch.compiler.assume_constant_result
def reduced_polynomial(text: str, dtype: torch.dtype) -> str:
    """Text of the polynomial with the fewest weights; the same text if none can be dropped."""
    found = reduction(text, dtype)
    return text if found is None else found.polynomial


def reduced_shape(text: str) -> tuple[int, int]:
    """Numbers of new and of given weights of a `WeightReduction`."""
    return described(text, WeightReduction)[:2]


@lru_cache(maxsize=64)
def reduction_matrix(text: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The reduction as a matrix ``[n_new, n_weights]``, in the arithmetic's dtype, on the device."""
    n_new, n_weights, entries = described(text, WeightReduction)
    matrix = np.zeros((n_new, n_weights))
    for new, weight, value in entries:
        matrix[new, weight] = value
    return torch.from_numpy(matrix).to(device, dtype)
