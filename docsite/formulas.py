"""Formulas of the pages: LaTeX to MathML, which browsers draw themselves."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from latex2mathml.exceptions import NoAvailableTokensError

# what pymdownx.arithmatex leaves of $...$ and $$...$$
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


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
        found = convert(latex.strip(), display=display)
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
