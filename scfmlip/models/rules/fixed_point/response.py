"""
The response of an atom's multipoles to the potential there, for the rule `fixed_point`.

If an atom does not feel its own potential, ``p = p0 - S (K - K_own) p``, a response above ``1 / K_own`` is
unstable: moving charge to a neighbour lowers the energy, so more follows. The linear equations have a
solution even then, and training finds such states (eigenvalues of -0.7 on an Al slab, and singular matrices
for some larger cells). The softness S is therefore defined with the atom's own potential included, and the
response to the other atoms' potential is ``S / (1 + S K_own)``; likewise for dipoles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....distributed import Halo
from ....electrostatics.density import quadrupole_components
from ...config import per_element
from ..base import RuleContext
from ..options import FixedPointConfig
from .many_body import ManyBody


class Response(torch.nn.Module):
    """
    Change of an atom's multipoles in response to the potential there.

    Args:
        config: Options of the rule.
        context: Elements, the order of the multipoles, and options of the message layer.
        own: ``[field_l + 1, n_widths]`` from `FieldFeatures.own`.
    """

    def __init__(self, config: FixedPointConfig, context: RuleContext, own: Tensor) -> None:
        super().__init__()
        elements, n_elements = context.elements, len(context.elements)
        self.passive, self.l_max = config.response == "passive", context.density.l_max
        n, widths = config.channels, len(config.field_feature_widths)
        self.field_l = config.field_feature_max_l
        scale = torch.tensor(per_element("rule.response_scale", config.response_scale, elements)) / n
        self.register_buffer("scale", scale, persistent=False)

        def weight(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(n_elements, *shape))

        if self.passive:
            self.own = weight(max(2, self.l_max + 1))
        else:
            self.potential, self.gradient = weight(widths, n), weight(widths, n)
            self.charge, self.vector, self.isotropic = weight(n), weight(n), weight(n)
            self.softness = torch.nn.Parameter(torch.zeros(n_elements, widths))
            self.polarity = torch.nn.Parameter(torch.zeros(n_elements, widths))
            if config.field_self_interaction:
                own = torch.zeros_like(own)
            self.register_buffer("own_field", own, persistent=False)
        self.mlp = None
        if config.response == "mlp":
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(n, config.hidden),
                torch.nn.SiLU(),
                torch.nn.Linear(config.hidden, n, bias=False),
            )
        self.many_body = ManyBody(n, self.l_max, context) if config.response == "many_body" else None

    @property
    def nonlinear(self) -> bool:
        """Whether the response has a nonlinear part."""
        return self.mlp is not None or self.many_body is not None

    def matrix(self, attrs: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        """
        ``[n_atoms, 1 | 4 | 9, n_field]`` linear response of the multipoles to the potential.

        Args:
            attrs: ``[n_atoms, n_elements]`` one-hot.
            scalars: ``[n_atoms, n]`` features.
            vectors: ``[n_atoms, n, 3]`` features.
        """
        assert isinstance(self.scale, Tensor)
        n, softplus = scalars.shape[1], torch.nn.functional.softplus
        scale = (attrs @ self.scale)[:, None, None]
        if self.passive:
            products = quadrupole_components(vectors[..., None] * vectors[..., None, :])
            parts = [scalars[..., None], vectors, products]
            rows = torch.cat(parts[: self.l_max + 1], 2)
            own = softplus(attrs @ self.own)
            diagonal = torch.cat([own[:, l : l + 1].expand(-1, 2 * l + 1) for l in range(self.l_max + 1)], 1)
            return -scale * (rows.mT @ rows + n * torch.diag_embed(diagonal))
        assert isinstance(self.own_field, Tensor)
        potential = torch.einsum("nz,zwk->nwk", attrs, self.potential)
        charge, vector = attrs @ self.charge, attrs @ self.vector
        s = scalars[:, None] * potential  # [n_atoms, n_widths, n]
        # charge always falls as the potential rises, so a level exists for every total charge
        local = torch.einsum("nwk,nk->nw", s, charge * scalars) / n
        soft = n * softplus(local + attrs @ self.softness)
        soft = soft / (1 + scale[:, 0] * (soft @ self.own_field[0])[:, None])
        blocks = [-soft[:, None]]
        if self.l_max > 0:
            blocks.append(torch.einsum("nwk,nk,nkc->ncw", s, vector, vectors))
        out = torch.cat(blocks, 1)
        if self.field_l > 0:
            gradient = torch.einsum("nz,zwk->nwk", attrs, self.gradient)
            blocks = [torch.einsum("nwk,nk,nkm->nwm", gradient, charge * scalars, vectors)[:, None]]
            if self.l_max > 0:
                # atoms polarise along the field, and more strongly along their vectors
                local = torch.einsum("nwk,nk->nw", gradient, attrs @ self.isotropic * scalars) / n
                even = n * softplus(local + attrs @ self.polarity)
                weights = gradient**2 * (vector**2)[:, None]
                tensor = torch.einsum("nwk,nkc,nkm->ncwm", weights, vectors, vectors)
                largest = even + torch.einsum("nwk,nkc->nw", weights, vectors**2)
                eye = torch.eye(3, dtype=scalars.dtype, device=scalars.device)
                tensor = tensor + even[:, None, :, None] * eye[:, None]
                bound = 1 + scale[:, 0, 0] * (largest @ self.own_field[1])
                blocks.append(-tensor / bound[:, None, None, None])
            out = torch.cat((out, torch.cat(blocks, 1).flatten(2)), 2)
        return scale * out

    def forward(
        self,
        field: Tensor,
        attrs: Tensor,
        scalars: Tensor,
        vectors: Tensor,
        edges: tuple[Tensor, Tensor | None, Tensor | None, Halo | None],
    ) -> Tensor:
        """
        ``[n_atoms, 1 | 4]`` nonlinear part of the response to ``field [n_atoms, n_field]``.

        ``edges``: index, harmonics and weights of the edges (`ManyBody.edges`; None if they are not needed),
        and the atoms that other processes own.
        """
        assert isinstance(self.scale, Tensor)
        widths = self.potential.shape[1]
        potential = torch.einsum("nz,zwk,nw->nk", attrs, self.potential, field[:, :widths])
        s, along = scalars * potential, vectors * potential[..., None]
        if self.field_l > 0:
            gradient = field[:, widths:].unflatten(1, (widths, 3))
            gradient = torch.einsum("nz,zwk,nwm->nkm", attrs, self.gradient, gradient)
            s, along = s + (vectors * gradient).sum(2), along + scalars[..., None] * gradient
        if self.many_body is not None:
            index, harmonics, weights, halo = edges
            assert harmonics is not None and weights is not None
            return (attrs @ self.scale)[:, None] * self.many_body(
                s, along, attrs, index, harmonics, weights, halo
            )
        assert self.mlp is not None
        s = self.mlp(s)
        out = ((attrs @ self.charge) * scalars * s).sum(1, keepdim=True)
        if self.l_max > 0:
            out = torch.cat((out, (((attrs @ self.vector) * s)[..., None] * vectors).sum(1)), 1)
        return (attrs @ self.scale)[:, None] * out
