from .op import norm_network

__all__ = ["norm_network"]
