"""Plain PyTorch definition of the indexed linear map; the tests' source of truth."""

import torch
from torch import Tensor


def indexed_linear_reference(x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
    """
    Multiply each row by the gathered matrix of its species, in float64.

    Args:
        x: ``[n_rows, n_components, n_in]``.
        weights: ``[n_species, n_in, n_out]``.
        index: ``[n_rows]`` species.

    Returns:
        ``[n_rows, n_components, n_out]``.
    """
    return torch.einsum("nci,nio->nco", x.double(), weights.double()[index])
