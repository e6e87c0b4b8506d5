"""
Stand-in for the `les` package, which is not on PyPI: the same interface, dense sums from the published
formula (Cheng, npj Comput. Mater. 11, 80 (2025)), one system at a time. Used where `les` is missing.
"""

import math

import torch


class Ewald(torch.nn.Module):
    def __init__(self, dl=2.0, sigma=1.0, remove_self_interaction=True, norm_factor=90.4756):
        super().__init__()
        self.dl, self.sigma, self.norm_factor = dl, sigma, norm_factor
        self.remove_self_interaction = remove_self_interaction
        self.sigma_sq_half = sigma**2 / 2.0
        self.k_sq_max = (2 * math.pi / dl) ** 2

    def forward(self, q, r, cell, batch):
        energies = []
        for i in range(len(cell)):
            dense = self._open if torch.linalg.det(cell[i]) < 1e-6 else self._crystal
            energies.append(self.norm_factor * dense(r[batch == i], q[batch == i], cell[i]))
        return torch.stack(energies)

    def _self(self, q):
        return (q**2).sum() / (self.sigma * (2 * math.pi) ** 1.5)

    def _open(self, r, q, box):
        d = (r[:, None] - r[None]).norm(dim=-1) + torch.eye(len(r), dtype=r.dtype)
        pair = torch.erf(d / (math.sqrt(2) * self.sigma)) / d * (1 - torch.eye(len(r), dtype=r.dtype))
        energy = (q.T @ pair @ q).trace() / (4 * math.pi)
        return energy if self.remove_self_interaction else energy + self._self(q)

    def _crystal(self, r, q, box):
        reciprocal = 2 * math.pi * torch.linalg.inv(box).T
        n_max = [max(1, int(length / self.dl)) for length in box.norm(dim=1)]
        n = torch.cartesian_prod(*(torch.arange(-m, m + 1, dtype=r.dtype) for m in n_max))
        k = n @ reciprocal
        k2 = (k**2).sum(1)
        inside = (k2 > 0) & (k2 <= self.k_sq_max)
        k, k2 = k[inside], k2[inside]
        phase = r @ k.T
        s2 = (q.T @ torch.cos(phase)) ** 2 + (q.T @ torch.sin(phase)) ** 2
        energy = (torch.exp(-self.sigma_sq_half * k2) / k2 * s2).sum() / torch.linalg.det(box)
        return energy - self._self(q) if self.remove_self_interaction else energy


class Les(torch.nn.Module):
    def __init__(self, les_arguments=None):
        super().__init__()
        options = les_arguments or {}
        self.sigma = options.get("sigma", 1.0)
        self.dl = options.get("dl", 2.0)
        self.remove_self_interaction = options.get("remove_self_interaction", True)
        self.use_atomwise = options.get("use_atomwise", False)
        self.ewald = Ewald(self.dl, self.sigma, self.remove_self_interaction)

    def forward(
        self,
        positions,
        cell,
        desc=None,
        latent_charges=None,
        batch=None,
        compute_energy=True,
        compute_field=False,
        compute_bec=False,
        bec_output_index=None,
    ):
        q = latent_charges if latent_charges.ndim == 2 else latent_charges[:, None]
        energy = self.ewald(q, positions, cell, batch) if compute_energy else None
        return {"E_lr": energy, "latent_charges": latent_charges, "BEC": None}
