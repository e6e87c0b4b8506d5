"""Files of earlier versions: renamed weights, and files that can no longer be read."""

from __future__ import annotations

import re

from torch import Tensor

# format of files that `scfmlip.save` writes; incremented when older versions cannot read them
FORMAT = "scfmlip-model-1"
_NUMBER = re.compile(r"scfmlip-model-(\d+)")

# renamed weights
_RENAMED = {"rule.charges": "rule.formal.charges"}


def check_format(found: str | None, where: str) -> None:
    """
    Refuse files of other programs and of later versions.

    Args:
        found: The format given in the file.
        where: The file, for messages.

    Raises:
        ValueError: says which of the two it is.
    """
    number = _NUMBER.fullmatch(found or "")
    if number is None:
        raise ValueError(f"{where} was not written by scfmlip.save (format {found!r}, expected {FORMAT!r})")
    if int(number[1]) > int(FORMAT.rpartition("-")[2]):
        raise ValueError(f"{where} was written by a later scfmlip (format {found!r}): upgrade scfmlip")


def upgrade(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """
    The weights of a file under their current names.

    Args:
        tensors: The weights as in the file.
        where: The file, for messages.

    Raises:
        ValueError: for a model whose equations have changed since then.
    """
    tensors = dict(tensors)
    for old, new in _RENAMED.items():
        if old in tensors:
            tensors[new] = tensors.pop(old)
    if "rule.response.softness" in tensors and "rule.response.polarity" not in tensors:
        raise ValueError(
            f"{where} was trained by a version that did not limit the response (rule.response.polarity is "
            "missing): the equations of fixed_point have changed since, train it again"
        )
    return tensors
