from .op import edge_vectors

__all__ = ["edge_vectors"]
