"""cuequivariance's segmented polynomials on our operators; needs the open package `cuequivariance` only."""

from .module import SegmentedPolynomial

__all__ = ["SegmentedPolynomial"]
