from .op import mesh_spread

__all__ = ["mesh_spread"]
