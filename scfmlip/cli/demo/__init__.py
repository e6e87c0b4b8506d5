"""``scfmlip demo``: comparison with the reference stack on real structures, and trained models."""

from .command import add_command

__all__ = ["add_command"]
