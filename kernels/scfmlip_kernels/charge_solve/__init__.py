from .op import charge_solve

__all__ = ["charge_solve"]
