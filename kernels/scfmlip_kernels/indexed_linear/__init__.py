from .op import indexed_linear

__all__ = ["indexed_linear"]
