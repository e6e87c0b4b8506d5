from .op import grouped_dot

__all__ = ["grouped_dot"]
