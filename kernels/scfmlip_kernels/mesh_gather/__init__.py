from .op import mesh_gather

__all__ = ["mesh_gather"]
