"""Gradients of the matrices of a network of normalised layers: one product for each kind of matrix."""

import torch
from torch import Tensor

from .description import NormNetwork


def matrices_gradient(
    left: Tensor, first: Tensor, right: Tensor, last: Tensor, sums: Tensor, bias: bool, network: NormNetwork
) -> Tensor:
    """
    The gradient in all parameters, of what belongs to their matrices.

    Args:
        left: ``[n_layers, n_rows, n_hidden]`` what belongs to the rows of the layers' matrices.
        first: ``[n_rows, n_in]`` what belongs to the columns of the first one.
        right: ``[n_layers, n_rows, n_hidden]`` what belongs to the columns of the others and of the last map.
        last: ``[n_rows, n_out]`` what belongs to the rows of the last map.
        sums: ``[n_programs, n_layers, 3, n_hidden]`` of biases, gains and shifts.
        bias: Whether ``last`` is the gradient of the last map's bias, which is 0 if not.
        network: Sizes.
    """
    n, n_layers = network.n_hidden, network.n_layers
    n_first, size = network.n_in + network.n_skipped, n * n + 3 * n
    full = network.n_skipped == 0 and (bias or network.end == "ones")
    found = (sums.new_empty if full else sums.new_zeros)(network.n_parameters)
    torch.mm(left[0].mT, first, out=found.as_strided((n, network.n_in), (n_first, 1)))
    start = n * n_first
    torch.sum(sums, 0, out=found.as_strided((n_layers, 3, n), (size, n, 1), start))
    if n_layers > 1:
        others = found.as_strided((n_layers - 1, n, n), (size, n, 1), start + 3 * n)
        torch.bmm(left[1:].mT, right[:-1], out=others)
    if network.end != "ones":
        start += n_layers * size - n * n
        torch.mm(last.mT, right[-1], out=found.as_strided((network.n_out, n), (n, 1), start))
        if bias:
            torch.sum(last, 0, out=found[start + network.n_out * n :])
    return found
