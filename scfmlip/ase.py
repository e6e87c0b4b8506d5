"""``scfmlip.ase.Calculator``: see `scfmlip.interfaces.ase`."""

from .interfaces.ase import Calculator

__all__ = ["Calculator"]
