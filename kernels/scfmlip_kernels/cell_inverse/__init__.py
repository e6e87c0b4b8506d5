from .op import cell_inverse

__all__ = ["cell_inverse"]
