from .op import spherical_harmonics

__all__ = ["spherical_harmonics"]
