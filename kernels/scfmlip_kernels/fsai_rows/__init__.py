from .op import fsai_rows

__all__ = ["fsai_rows"]
