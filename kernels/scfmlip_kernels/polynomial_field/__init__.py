from .op import polynomial_field, polynomial_moments

__all__ = ["polynomial_field", "polynomial_moments"]
