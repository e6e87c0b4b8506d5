"""Linear maps of rows, each in one launch on a GPU: what PyTorch does in several, as sums of products."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor

from scfmlip_kernels import RowForm, row_form

from ..segments import Segments

# what maps are known, with the shape of their results; most recent last
_KNOWN: OrderedDict[Hashable, tuple[torch.Size, RowForm]] = OrderedDict()
_MOST = 256
# columns up to which a table of terms is small
_COLUMNS = 512


def fits(rows: Tensor) -> bool:
    """Whether rows are mapped by a form here: on a GPU, by nobody who traces."""
    return rows.is_cuda and not torch.compiler.is_compiling()


def by_form(rows: Tensor, n_last: int, key: Hashable, function: Callable[[Tensor], Tensor]) -> Tensor:
    """
    A linear function of the last dimensions of rows; on a GPU as one form, which is found from its values.

    Args:
        rows: ``[..., *]``.
        n_last: Number of dimensions that the function maps; it maps all rows alike.
        key: Names the function.
        function: The function; called with a CPU's float64 rows to find the form.
    """
    shape = rows.shape[rows.ndim - n_last :]
    size = math.prod(shape)
    if not fits(rows) or size > _COLUMNS:
        return function(rows)
    out_shape, form = form_of(shape, key, function)
    lead = rows.shape[: rows.ndim - n_last]
    return row_form(rows.reshape(math.prod(lead), size), form).view(*lead, *out_shape)


def form_of(
    shape: torch.Size, key: Hashable, function: Callable[[Tensor], Tensor]
) -> tuple[torch.Size, RowForm]:
    """Shape of the results of a linear function of ``shape``, and its form; arguments as in `by_form`."""
    known = _KNOWN.get((key, shape))
    if known is None:
        size = math.prod(shape)
        with torch.no_grad():
            values = function(torch.eye(size, dtype=torch.float64).view(size, *shape))
        matrix = values.reshape(size, -1)
        places = matrix.nonzero().tolist()
        terms = tuple((out, x, -1, float(matrix[x, out])) for x, out in places)
        known = values.shape[1:], RowForm(size, 0, matrix.shape[1], terms)
        _KNOWN[key, shape] = known
        if len(_KNOWN) > _MOST:
            _KNOWN.popitem(last=False)
    return known


def repeated(form: RowForm, n: int) -> RowForm:
    """The form for n groups of columns, one after another, each mapped alike."""
    terms = (
        (out + k * form.n_out, x if x < 0 else x + k * form.n_x, m, factor)
        for k in range(n)
        for out, x, m, factor in form.terms
    )
    return RowForm(n * form.n_x, form.n_m, n * form.n_out, tuple(terms))


def composed(first: RowForm, second: RowForm) -> RowForm:
    """The second form of the first one's result; at most one of them has numbers of systems."""
    by_out: dict[int, list[tuple[int, int, float]]] = {}
    for out, x, m, factor in first.terms:
        by_out.setdefault(out, []).append((x, m, factor))
    found: dict[tuple[int, int, int], float] = {}
    for out, middle, m, factor in second.terms:
        for x, n, more in by_out.get(middle, []) if middle >= 0 else [(-1, -1, 1.0)]:
            place = (out, x, max(m, n))
            found[place] = found.get(place, 0.0) + factor * more
    terms = tuple((*place, factor) for place, factor in found.items())
    return RowForm(first.n_x, max(first.n_m, second.n_m), second.n_out, terms)


@lru_cache(maxsize=256)
def turn_form(n_groups: int, size: int, scale: float, transposed: bool) -> RowForm:
    """Groups of a vector, or of a number and a vector, which is multiplied by a 3 x 3 matrix."""
    terms: list[tuple[int, int, int, float]] = []
    for group in range(n_groups):
        first = group * size
        if size == 4:
            terms.append((first, first, -1, 1.0))
            first += 1
        for out in range(3):
            for x in range(3):
                place = 3 * out + x if transposed else 3 * x + out
                terms.append((first + out, first + x, place, scale))
    return RowForm(n_groups * size, 9, n_groups * size, tuple(terms))


def turned_groups(
    rows: Tensor, matrices: Tensor, segments: Segments, scale: float, transposed: bool
) -> Tensor | None:
    """
    Vectors times a matrix of their system and a factor, in one launch; None if this has to be done otherwise.

    Args:
        rows: ``[n, ..., 3 | 4]``: vectors, or numbers with vectors behind them, which stay.
        matrices: ``[n_systems, 3, 3]``, converted to the dtype of the rows.
        segments: The system of each row.
        scale: The factor.
        transposed: Whether to use the transposed matrices.
    """
    size = rows.shape[-1]
    n_groups = math.prod(rows.shape[1:-1])
    if not fits(rows) or segments.shared or n_groups * size > _COLUMNS or n_groups == 0:
        return None
    if len(matrices) > 1 and segments.order is not None:
        return None
    form = turn_form(n_groups, size, scale, transposed)
    return with_matrices(rows.flatten(1), form, matrices, segments).view(rows.shape)


def with_matrices(rows: Tensor, form: RowForm, matrices: Tensor, segments: Segments) -> Tensor:
    """A form of rows ``[n, n_x]`` and of the numbers of ``[n_systems, 3, 3]`` matrices, ``[n, n_out]``."""
    places = (None, None) if len(matrices) == 1 else (segments.index, segments.ptr)
    return row_form(rows, form, matrices.to(rows.dtype).flatten(1), *places)
