from .op import conjugate_move

__all__ = ["conjugate_move"]
