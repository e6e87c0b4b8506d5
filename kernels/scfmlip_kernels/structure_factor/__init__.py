from .op import structure_factor

__all__ = ["structure_factor"]
