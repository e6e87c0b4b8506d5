"""Drop-in acceleration of mace-torch models."""

from .accelerate import accelerate, restore

__all__ = ["accelerate", "restore"]
