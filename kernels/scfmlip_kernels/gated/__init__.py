from .op import gated

__all__ = ["gated"]
