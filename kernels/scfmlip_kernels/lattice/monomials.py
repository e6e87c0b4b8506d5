"""
Monomials n1^a n2^b n3^c of a Miller index, in graded order.

A multipole of rank R is a polynomial of degree R in the wave vector, so charges, dipoles,
quadrupoles and every derivative in the positions are coefficients of these monomials, and one
operator family covers them all: differentiating in a fractional coordinate shifts the exponents.
"""

from functools import cache


@cache
def monomials(rank: int) -> tuple[tuple[int, int, int], ...]:
    """
    Exponents ``(a, b, c)`` with ``a + b + c <= rank``, lower degrees first.

    Rank 1 is ``(0,0,0), (1,0,0), (0,1,0), (0,0,1)``: a charge and a dipole.
    """
    return tuple(
        (a, b, degree - a - b)
        for degree in range(rank + 1)
        for a in range(degree, -1, -1)
        for b in range(degree - a, -1, -1)
    )


def monomial_count(rank: int) -> int:
    """Number of monomials of degree at most ``rank``: 1, 4, 10, 20, 35, ..."""
    return (rank + 1) * (rank + 2) * (rank + 3) // 6


def rank_of_count(count: int) -> int:
    """The rank that has ``count`` monomials; raises ``ValueError`` if there is none."""
    rank = 0
    while monomial_count(rank) < count:
        rank += 1
    if monomial_count(rank) != count:
        raise ValueError(
            f"the last dimension must hold the monomials of one rank (1, 4, 10, 20, ...), got {count}"
        )
    return rank


@cache
def shifted_monomials(rank: int) -> tuple[tuple[int, ...], ...]:
    """
    For each axis, the index among the monomials of ``rank + 1`` of each monomial of ``rank`` times the
    Miller index along that axis.
    """
    place = {exponents: i for i, exponents in enumerate(monomials(rank + 1))}
    return tuple(
        tuple(place[(a + (axis == 0), b + (axis == 1), c + (axis == 2))] for a, b, c in monomials(rank))
        for axis in range(3)
    )
