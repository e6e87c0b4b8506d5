from .op import grouped_dot, grouped_scale

__all__ = ["grouped_dot", "grouped_scale"]
