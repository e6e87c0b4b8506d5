"""Drop-in acceleration of mace-torch models."""

from .accelerate import accelerate, is_accelerated, restore

__all__ = ["accelerate", "is_accelerated", "restore"]
