"""The polynomials and their adjoint in PyTorch; arguments as in `op`."""

import torch
from torch import Tensor

from ..lattice.monomials import monomial_count


def _matrices(upper: Tensor) -> Tensor:
    xx, xy, xz, yy, yz, zz = upper.unbind(-1)
    return torch.stack((xx, xy, xz, xy, yy, yz, xz, yz, zz), -1).unflatten(-1, (3, 3))


def field_plain(r: Tensor, c: Tensor, rank: int) -> Tensor:
    """``[n_atoms, n_channels, n_monomials]``."""
    place = r[:, None]
    turned = (_matrices(c[..., 4:]) * place[..., None, :]).sum(-1)
    linear = c[..., 1:4]
    value = c[..., 0] + ((linear + 0.5 * turned) * place).sum(-1)
    parts = [value[..., None], linear + turned, c[..., 4:]][: rank + 1]
    if rank > 2:
        parts.append(c.new_zeros((*c.shape[:2], monomial_count(rank) - 10)))
    return torch.cat(parts, -1)


def moments_plain(r: Tensor, p: Tensor) -> Tensor:
    """``[n_atoms, n_channels, 10]``."""
    place, q = r[:, None], p[..., :1]
    d = p[..., 1:4] if p.shape[-1] > 1 else torch.zeros_like(place).expand(*p.shape[:2], 3)
    outer = (0.5 * q * place + d)[..., :, None] * place[..., None, :]
    both = outer + outer.mT
    second = [0.5 * both[..., i, i] if i == j else both[..., i, j] for i in range(3) for j in range(i, 3)]
    found = torch.stack(second, -1)
    if p.shape[-1] > 4:
        found = found + p[..., 4:10]
    return torch.cat((q, q * place + d, found), -1)
