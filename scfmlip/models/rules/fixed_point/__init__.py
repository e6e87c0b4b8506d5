"""Charges that respond to their own potential: the rule, its responses, and their stability."""

from .rule import FixedPoint

__all__ = ["FixedPoint"]
