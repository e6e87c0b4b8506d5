from .op import close_charges

__all__ = ["close_charges"]
