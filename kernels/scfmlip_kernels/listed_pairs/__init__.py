from .op import listed_pairs

__all__ = ["listed_pairs"]
