from .op import radial_basis

__all__ = ["radial_basis"]
