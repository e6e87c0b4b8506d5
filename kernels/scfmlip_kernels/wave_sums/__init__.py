from .op import wave_coefficients, wave_energies, wave_weights

__all__ = ["wave_coefficients", "wave_energies", "wave_weights"]
