"""Charges that minimise a quadratic energy: the rule, range separation, screened neighbours."""

from .rule import Equilibrated

__all__ = ["Equilibrated"]
