from .op import slab_cell

__all__ = ["slab_cell"]
