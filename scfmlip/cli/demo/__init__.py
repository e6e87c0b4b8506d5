"""``scfmlip demo``: the main job on real input, and what the trained models do with it."""

from .command import add_command

__all__ = ["add_command"]
