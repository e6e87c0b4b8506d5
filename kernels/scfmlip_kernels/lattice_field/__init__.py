from .op import lattice_field

__all__ = ["lattice_field"]
