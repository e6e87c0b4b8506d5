"""Tolerances by dtype, in one place; a test that needs another says why on its line."""

import torch

# relative to the largest value of the reference
RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-12}


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float | None = None) -> None:
    """Largest difference at most ``tolerance`` (by dtype of ``got`` if None) of the largest value."""
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape, (got.shape, want.shape)
    tolerance = RELATIVE[got.dtype] if tolerance is None else tolerance
    scale = float(want.abs().max()) if want.numel() else 0.0
    error = float((got.double().cpu() - want.double().cpu()).abs().max()) if want.numel() else 0.0
    assert error <= tolerance * max(scale, 1e-300), f"error {error:.3e}, scale {scale:.3e}"
