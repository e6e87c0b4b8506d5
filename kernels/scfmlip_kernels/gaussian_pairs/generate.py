"""
The pair sums' kernel of high ranks, as text: second derivatives of dipoles and quadrupoles.

Every pair makes the Cartesian derivatives ``T_D`` of the interaction up to the summed degree by the recursion
of `cpu`, in registers, and contracts them with the source. Results of a pair are summed in float64 by the
thread that owns it; threads of one target are added once, at the end.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..codegen import SourceWriter, kernel_of
from ..lattice.monomials import monomials

_HEAD = """
def _gaussian_pairs_kernel(
    positions_ptr,  # [n_atoms, 3]
    moments_ptr,  # [n_atoms, n_channels, n_widths, n_moments], any strides
    constants_ptr,  # [n_widths + 1]: alpha = 1 / (sqrt(2) S) of each width, then the softening
    tiles_ptr,  # [n_tiles, 3] int32: first target, first and last atom of the system
    out_ptr,  # [n_splits, n_atoms, n_channels, n_widths, n_out] float64, or the moments' dtype
    n_atoms,
    n_widths,
    group_size,
    stride_moments_atom,
    stride_moments_channel,
    stride_moments_width,
    stride_moments_monomial,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SOURCES: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0).to(tl.int64) * 3
    first = tl.load(tile)
    begin = tl.load(tile + 1)
    end = tl.load(tile + 2)
    column = tl.program_id(1).to(tl.int64)
    alpha = tl.load(constants_ptr + column % n_widths)
    sources_ptr = moments_ptr + (column // n_widths) * stride_moments_channel
    sources_ptr += (column % n_widths) * stride_moments_width
    i = first + tl.arange(0, BLOCK)
    inside = i < end
    xi = tl.load(positions_ptr + 3 * i, mask=inside, other=0.0)[:, None]
    yi = tl.load(positions_ptr + 3 * i + 1, mask=inside, other=0.0)[:, None]
    zi = tl.load(positions_ptr + 3 * i + 2, mask=inside, other=0.0)[:, None]
    split = tl.program_id(2)
"""

_PAIR = """
    for block in range(begin + split * BLOCK_SOURCES, end, tl.num_programs(2) * BLOCK_SOURCES):
        j = block + tl.arange(0, BLOCK_SOURCES)
        valid = j < end
        x = xi - tl.load(positions_ptr + 3 * j, mask=valid, other=0.0)[None, :]
        y = yi - tl.load(positions_ptr + 3 * j + 1, mask=valid, other=0.0)[None, :]
        z = zi - tl.load(positions_ptr + 3 * j + 2, mask=valid, other=0.0)[None, :]
        other = (i // group_size)[:, None] != (j // group_size)[None, :]
        keep = other & valid[None, :]
        u = tl.where(keep, x * x + y * y + z * z, 1.0) * alpha * alpha
        decay = tl.exp(-u)
        safe = tl.maximum(u, 2.0)
        root = tl.sqrt(safe)
        large_decay = tl.exp(-safe)
        small = tl.minimum(u, 2.0)
        near = u < 2.0
        prefactor = tl.where(keep, 1.1283791670955126 * alpha, alpha * 0.0)
        step = -2.0 * alpha * alpha
"""


def _add_boys(text: SourceWriter, order: int) -> None:
    """``f_n``, ``((1/r) d/dr)^n`` of the interaction for n up to an order: see `kernel`."""
    text.add(2, "up_0 = 0.886226925452758 * tl.erf(root) / root")
    for n in range(order):
        text.add(2, f"up_{n + 1} = ({2 * n + 1}.0 * up_{n} - large_decay) / (2.0 * safe)")
    text.add(2, f"term = tl.full(u.shape, {1 / (2 * order + 1)!r}, u.dtype)")
    text.add(2, f"down_{order} = term")
    text.add(2, "for k in tl.static_range(1, TERMS):")
    text.add(3, f"term = term * small * (2.0 / ({2 * order + 1} + 2 * k))")
    text.add(3, f"down_{order} = down_{order} + term")
    text.add(2, f"down_{order} = down_{order} * decay")
    for n in range(order, 0, -1):
        text.add(2, f"down_{n - 1} = (2.0 * small * down_{n} + decay) / {2 * n - 1}.0")
    for n in range(order + 1):
        text.add(2, f"f_{n} = prefactor * tl.where(near, down_{n}, up_{n})")
        if n < order:
            text.add(2, "prefactor = prefactor * step")


def _name(exponents: Sequence[int], n: int) -> str:
    return f"t_{''.join(map(str, exponents))}_{n}" if any(exponents) else f"f_{n}"


def _add_raised(text: SourceWriter, exponents: tuple[int, ...], order: int) -> None:
    """``T^n_D``, n up to an order, by ``T^n_(D + 1_x) = D_x T^(n+1)_(D - 1_x) + x T^(n+1)_D``."""
    axis = next(a for a in range(3) if exponents[a])
    below = [e - (a == axis) for a, e in enumerate(exponents)]
    twice = [e - (a == axis) for a, e in enumerate(below)]
    for n in range(order + 1):
        line = f"{_name(exponents, n)} = {'xyz'[axis]} * {_name(below, n + 1)}"
        if below[axis]:
            line += f" + {below[axis]}.0 * {_name(twice, n + 1)}"
        text.add(2, line)


def _add_moments(text: SourceWriter, sources: Sequence, signed: bool) -> None:
    """``c_b``, with the sign of its degree if ``signed``."""
    text.add(2, "source = sources_ptr + j.to(tl.int64) * stride_moments_atom")
    for b, moment in enumerate(sources):
        place = f"source + {b} * stride_moments_monomial"
        sign = "-" if signed and sum(moment) % 2 else ""
        text.add(2, f"c_{b} = {sign}tl.load({place}, mask=valid, other=0.0)[None, :]")


def _add_pair_at_once(text: SourceWriter, results: tuple, sources: tuple, order: int) -> None:
    """
    Each ``T_D_0`` is added to the results when it is made, z outermost, so that few are held at a time.

    All of them in float64 and the results are more than registers hold.
    """
    _add_moments(text, sources, True)
    for exponents in sorted(monomials(order), key=lambda e: e[::-1]):
        if any(exponents):
            _add_raised(text, exponents, order - sum(exponents))
        for b, moment in enumerate(sources):
            target = tuple(e - m for e, m in zip(exponents, moment, strict=True))
            if target in results:
                text.add(2, f"v_{results.index(target)} += c_{b} * {_name(exponents, 0)}")


def _add_pair(text: SourceWriter, results: tuple, sources: tuple, order: int) -> None:
    """All ``T_D_0``, then each result of the pair, which is summed in float32."""
    for exponents in monomials(order)[1:]:
        _add_raised(text, exponents, order - sum(exponents))
    _add_moments(text, sources, False)
    for a, target in enumerate(results):
        value = ""
        for b, moment in enumerate(sources):
            summed = tuple(s + t for s, t in zip(target, moment, strict=True))
            sign = ("-" if sum(moment) % 2 else "") if not value else (" - " if sum(moment) % 2 else " + ")
            value += f"{sign}c_{b} * {_name(summed, 0)}"
        text.add(2, f"v_{a} += ({value}).to(tl.float64)")


def _source(source_rank: int, rank: int, double: bool) -> str:
    text, n_results = SourceWriter(), len(monomials(rank))
    text.add_block(_HEAD)
    for a in range(n_results):
        text.add(1, f"v_{a} = tl.zeros((BLOCK, BLOCK_SOURCES), tl.float64)")
    text.add_block(_PAIR)
    _add_boys(text, source_rank + rank)
    add_pair = _add_pair_at_once if double else _add_pair
    add_pair(text, monomials(rank), monomials(source_rank), source_rank + rank)
    text.add(1, "place = (split.to(tl.int64) * n_atoms + i.to(tl.int64)) * tl.num_programs(1) + column")
    for a in range(n_results):
        text.add(1, f"tl.store(out_ptr + place * {n_results} + {a}, tl.sum(v_{a}, 1), mask=inside)")
    return text.source()


SIZES = (
    "n_atoms",
    "n_widths",
    "group_size",
    "stride_moments_atom",
    "stride_moments_channel",
    "stride_moments_width",
    "stride_moments_monomial",
)


@lru_cache(maxsize=64)
def pairs_kernel(source_rank: int, rank: int, double: bool) -> Any:
    """The kernel for sources and results of some ranks, in float64 if ``double``."""
    return kernel_of(_source(source_rank, rank, double), "gaussian_pairs", SIZES)
