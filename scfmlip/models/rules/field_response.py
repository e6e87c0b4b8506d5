"""How the multipoles of an atom answer the potential there: the response of the rule `fixed_point`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import per_element

if TYPE_CHECKING:
    from .fixed_point import FixedPointConfig


class Response(torch.nn.Module):
    """
    Change of an atom's multipoles with the potential there.

    Args:
        config: Options.
        l_max: Of the multipoles.
        elements: Atomic numbers, in the order of the one-hot encoding.
    """

    def __init__(self, config: FixedPointConfig, l_max: int, elements: Sequence[int]) -> None:
        super().__init__()
        n_elements = len(elements)
        self.passive, self.l_max = config.response == "passive", l_max
        n, widths = config.channels, len(config.field_feature_widths)
        self.field_l = config.field_feature_max_l
        scale = torch.tensor(per_element("rule.response_scale", config.response_scale, elements)) / n
        self.register_buffer("scale", scale, persistent=False)

        def weight(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(n_elements, *shape))

        if self.passive:
            self.own = weight(2)
        else:
            self.potential, self.gradient = weight(widths, n), weight(widths, n)
            self.charge, self.vector, self.isotropic = weight(n), weight(n), weight(n)
            self.softness = torch.nn.Parameter(torch.zeros(n_elements, widths))
        self.mlp = None
        if config.response == "mlp":
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(n, config.hidden),
                torch.nn.SiLU(),
                torch.nn.Linear(config.hidden, n, bias=False),
            )

    def matrix(self, attrs: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        """
        ``[n_atoms, 1 | 4, n_field]`` linear response of multipoles to the potential.

        Args:
            attrs: ``[n_atoms, n_elements]`` one-hot.
            scalars: ``[n_atoms, n]`` features.
            vectors: ``[n_atoms, n, 3]`` features.
        """
        assert isinstance(self.scale, Tensor)
        n, softplus = scalars.shape[1], torch.nn.functional.softplus
        scale = (attrs @ self.scale)[:, None, None]
        if self.passive:
            rows = torch.cat((scalars[..., None], vectors), 2) if self.l_max > 0 else scalars[..., None]
            own = softplus(attrs @ self.own)
            diagonal = torch.cat((own[:, :1], own[:, 1:].expand(-1, 3)), 1)[:, : rows.shape[2]]
            return -scale * (rows.mT @ rows + n * torch.diag_embed(diagonal))
        potential = torch.einsum("nz,zwk->nwk", attrs, self.potential)
        charge, vector = attrs @ self.charge, attrs @ self.vector
        s = scalars[:, None] * potential  # [n_atoms, n_widths, n]
        # charge always falls as the potential rises: the level that a total charge needs exists
        local = torch.einsum("nwk,nk->nw", s, charge * scalars) / n
        blocks = [-n * softplus(local + attrs @ self.softness)[:, None]]
        if self.l_max > 0:
            blocks.append(torch.einsum("nwk,nk,nkc->ncw", s, vector, vectors))
        out = torch.cat(blocks, 1)
        if self.field_l > 0:
            gradient = torch.einsum("nz,zwk->nwk", attrs, self.gradient)
            blocks = [torch.einsum("nwk,nk,nkm->nwm", gradient, charge * scalars, vectors)[:, None]]
            if self.l_max > 0:
                tensor = torch.einsum("nwk,nk,nkc,nkm->ncwm", gradient, vector, vectors, vectors)
                # atoms without vectors among their features polarise along the field
                even = torch.einsum("nwk,nk->nw", gradient, attrs @ self.isotropic * scalars)
                eye = torch.eye(3, dtype=scalars.dtype, device=scalars.device)
                blocks.append(tensor + even[:, None, :, None] * eye[:, None])
            out = torch.cat((out, torch.cat(blocks, 1).flatten(2)), 2)
        return scale * out

    def forward(self, field: Tensor, attrs: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        """``[n_atoms, 1 | 4]`` nonlinear part of the response to ``field [n_atoms, n_field]``."""
        assert self.mlp is not None and isinstance(self.scale, Tensor)
        widths = self.potential.shape[1]
        s = scalars * torch.einsum("nz,zwk,nw->nk", attrs, self.potential, field[:, :widths])
        if self.field_l > 0:
            gradient = field[:, widths:].unflatten(1, (widths, 3))
            s = s + torch.einsum("nkm,nz,zwk,nwm->nk", vectors, attrs, self.gradient, gradient)
        s = self.mlp(s)
        out = ((attrs @ self.charge) * scalars * s).sum(1, keepdim=True)
        if self.l_max > 0:
            out = torch.cat((out, (((attrs @ self.vector) * s)[..., None] * vectors).sum(1)), 1)
        return (attrs @ self.scale)[:, None] * out
