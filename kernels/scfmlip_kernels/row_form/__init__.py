from .op import row_form

__all__ = ["row_form"]
