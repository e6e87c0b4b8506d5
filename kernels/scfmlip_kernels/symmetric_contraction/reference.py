"""Plain PyTorch definition of the symmetric contraction; the tests' source of truth."""

import torch
from torch import Tensor

from .polynomial import SymmetricPolynomial


def symmetric_contraction_reference(
    x: Tensor, weights: Tensor, index: Tensor, polynomial: SymmetricPolynomial
) -> Tensor:
    """
    Evaluate the polynomial term by term in float64; arguments as in `symmetric_contraction`.

    Returns:
        ``[n_atoms, n_channels, n_outputs]``.
    """
    x, gathered = x.double(), weights.double()[index]
    outputs = [torch.zeros_like(x[..., 0]) for _ in range(polynomial.n_outputs)]
    for factors, weight, output, coefficient in polynomial.terms:
        term = coefficient * gathered[:, weight]
        for i in factors:
            term = term * x[..., i]
        outputs[output] = outputs[output] + term
    return torch.stack(outputs, -1)
