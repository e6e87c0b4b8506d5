from .op import block_linear

__all__ = ["block_linear"]
