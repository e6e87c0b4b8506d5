"""How docstrings become pages: ``Example:`` holds a session of the interpreter."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Sessions(Extension):
    """Shows what stands under ``Example:`` as code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
