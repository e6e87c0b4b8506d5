"""What a form of rows computes: products of a column of x, a number of the row's system, and a factor."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..registry import describe, described


class RowForm(NamedTuple):
    """
    Columns of a result as sums of products.

    Attributes:
        n_x: Columns of x.
        n_m: Numbers of each system; 0 if there are none.
        n_out: Columns of the result.
        terms: Each ``(column of the result, column of x, number of the system, factor)``; -1 in the place of
            the column or of the number stands for 1.

    Example:
        >>> from scfmlip_kernels import RowForm
        >>> swap = ((0, 1, -1, 1.0), (1, 0, -1, 1.0))
        >>> RowForm(n_x=2, n_m=0, n_out=2, terms=swap).n_out  # the two columns of x in the other order
        2
    """

    n_x: int
    n_m: int
    n_out: int
    terms: tuple[tuple[int, int, int, float], ...]

    @classmethod
    def from_json(cls, n_x: int, n_m: int, n_out: int, terms: list) -> RowForm:
        """See `registry`."""
        return cls(n_x, n_m, n_out, tuple(tuple(term) for term in terms))

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        for out, x, m, _ in self.terms:
            if not (0 <= out < self.n_out and -1 <= x < self.n_x and -1 <= m < self.n_m):
                raise ValueError(
                    f"RowForm: a term of column {out} of {self.n_out}, column {x} of {self.n_x} of x and "
                    f"number {m} of {self.n_m}"
                )


@lru_cache(maxsize=1024)
def form_of(text: str) -> RowForm:
    """The form that a text describes."""
    return described(text, RowForm)


@lru_cache(maxsize=1024)
def turned(text: str, what: str) -> str:
    """
    Text of a related form.

    Args:
        text: Of a form from x and m to out.
        what: ``"x"``: from out and m to x; ``"m"``: from x and out to m; ``"linear x"``, ``"linear m"``: only
            terms with a column of x, or a number of the system.
    """
    form = form_of(text)
    terms = form.terms
    if what in ("x", "linear x"):
        terms = tuple(t for t in terms if t[1] >= 0)
    if what in ("m", "linear m"):
        terms = tuple(t for t in terms if t[2] >= 0)
    if what == "x":
        terms = tuple((x, out, m, factor) for out, x, m, factor in terms)
        form = RowForm(form.n_out, form.n_m, form.n_x, terms)
    elif what == "m":
        terms = tuple((m, x, out, factor) for out, x, m, factor in terms)
        form = RowForm(form.n_x, form.n_out, form.n_m, terms)
    else:
        form = form._replace(terms=terms)
    return describe(form)


@lru_cache(maxsize=1024)
def table_of(text: str, by: str) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Terms of each column of the result (by ``"out"``) or number of a system (``"m"``), padded with -2."""
    form = form_of(text)
    place, n = (0, form.n_out) if by == "out" else (2, form.n_m)
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    weights: list[list[float]] = [[] for _ in range(n)]
    for out, x, m, factor in form.terms:
        k = (out, x, m)[place]
        if k >= 0:
            # columns of x and numbers, or columns of x and of the result
            pairs[k].append((x, m if by == "out" else out))
            weights[k].append(factor)
    most = max([1, *map(len, pairs)])
    numbers = tuple(
        (*(v for pair in each for v in pair), *(-2,) * (2 * (most - len(each)))) for each in pairs
    )
    return numbers, tuple((*each, *(0.0,) * (most - len(each))) for each in weights)
