from .op import pseudo_inverse

__all__ = ["pseudo_inverse"]
