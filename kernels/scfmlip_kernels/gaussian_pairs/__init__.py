from .op import gaussian_pairs

__all__ = ["gaussian_pairs"]
