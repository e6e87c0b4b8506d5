from .op import wave_weights

__all__ = ["wave_weights"]
