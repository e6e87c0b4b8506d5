from .op import polynomial_field

__all__ = ["polynomial_field"]
