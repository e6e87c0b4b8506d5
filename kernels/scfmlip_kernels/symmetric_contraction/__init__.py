from .op import symmetric_contraction

__all__ = ["symmetric_contraction"]
