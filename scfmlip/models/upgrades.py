"""Files of earlier versions: what they hold under other names, and what cannot be read any more."""

from __future__ import annotations

import re

from torch import Tensor

# of files that `scfmlip.save` writes; the number goes up when older versions could not read them
FORMAT = "scfmlip-model-1"
_NUMBER = re.compile(r"scfmlip-model-(\d+)")

# weights that have got another name
_RENAMED = {"rule.charges": "rule.formal.charges"}


def check_format(found: str | None, where: str) -> None:
    """
    Refuse files of other programs and of later versions.

    Args:
        found: The format that a file states.
        where: The file, for messages.

    Raises:
        ValueError: says which it is.
    """
    number = _NUMBER.fullmatch(found or "")
    if number is None:
        raise ValueError(f"{where} was not written by scfmlip.save (format {found!r}, expected {FORMAT!r})")
    if int(number[1]) > int(FORMAT.rpartition("-")[2]):
        raise ValueError(f"{where} was written by a later scfmlip (format {found!r}): upgrade scfmlip")


def upgrade(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """
    The weights of a file under the names of today.

    Args:
        tensors: As in the file.
        where: The file, for messages.

    Raises:
        ValueError: for a model whose equations have changed since.
    """
    tensors = dict(tensors)
    for old, new in _RENAMED.items():
        if old in tensors:
            tensors[new] = tensors.pop(old)
    if "rule.response.softness" in tensors and "rule.response.polarity" not in tensors:
        raise ValueError(
            f"{where} was trained before atoms' own potential limited their response (rule.response.polarity "
            "is missing): its equations are not those of today's fixed_point, train it again"
        )
    return tensors
