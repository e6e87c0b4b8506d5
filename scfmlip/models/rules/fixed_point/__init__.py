"""Charges that answer their own potential: the rule, its responses, and how stable they are."""

from .rule import FixedPoint

__all__ = ["FixedPoint"]
