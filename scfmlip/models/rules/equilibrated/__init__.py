"""Charges that minimise a quadratic energy: the rule, its split of narrow Gaussians, screened neighbours."""

from .rule import Equilibrated

__all__ = ["Equilibrated"]
