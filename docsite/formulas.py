"""Formulas of the pages: LaTeX to MathML, which browsers draw themselves."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from latex2mathml.exceptions import NoAvailableTokensError

# what pymdownx.arithmatex leaves of $...$ and $$...$$
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
# browsers draw letters as they are encoded and know no attribute for bold ones
_BOLD = re.compile(r'<(m[in]) mathvariant="bold">([A-Za-z0-9]+)</m[in]>')
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def _bold(match: re.Match[str]) -> str:
    """Letters and digits as Unicode's mathematical bold ones, upright."""
    digit = ord("0"), 0x1D7CE
    letters = ""
    for c in match[2]:
        old, new = digit if c.isdigit() else (ord("A"), 0x1D400) if c.isupper() else (ord("a"), 0x1D41A)
        letters += chr(ord(c) - old + new)
    return f"<{match[1]}>{letters}</{match[1]}>"


def to_mathml(latex: str, display: str = "inline") -> str:
    """
    A formula as MathML.

    Args:
        latex: The formula.
        display: "inline" or "block".

    Raises:
        ValueError: for a formula that is none, or a command that the converter does not know.
    """
    try:
        found = _BOLD.sub(_bold, convert(latex.strip(), display=display))
    except (NoAvailableTokensError, Exception) as error:  # the converter raises what it trips over
        raise ValueError(f"the formula {latex!r} cannot be read: {type(error).__name__} {error}") from error
    unknown = re.search(r"<m[a-z]+>(\\[A-Za-z]+)</m[a-z]+>", found)
    if unknown:
        raise ValueError(f"the formula {latex!r} holds {unknown[1]}, which the converter does not know")
    return found


def render(page: str) -> str:
    """
    A page's HTML with its formulas as MathML.

    Raises:
        ValueError: as `to_mathml`.
    """
    page = _BLOCK.sub(lambda m: f'<div class="formula">{to_mathml(html.unescape(m[1]), "block")}</div>', page)
    return _INLINE.sub(lambda m: to_mathml(html.unescape(m[1])), page)
