"""What counts to the backbone, on a model whose sizes are known."""

import torch
from torch import nn

from bench.backbone import backbone_share, peak_beside_backbone

N = 2**18  # of 4 bytes: 1 MiB a tensor


class _Layer(nn.Module):
    def forward(self, x):
        return torch.stack([x.sin()] * 20).exp().sum(0)


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("node_embedding", "spherical_harmonics", "radial_embedding"):
            setattr(self, name, _Layer())
        self.interactions, self.products = nn.ModuleList([_Layer()]), nn.ModuleList([_Layer()])

    def forward(self, x):
        rest = torch.stack([x.cos()] * 4)  # 5 MiB alive; the layers' 20 and more are not counted
        x = self.node_embedding(x) + self.spherical_harmonics(x) + self.radial_embedding(x)
        for layer in (*self.interactions, *self.products):
            x = layer(x)
        return (x + rest.sum(0)).sum()


def test_only_the_rest_is_counted():
    model, x = _Model(), torch.rand(N, requires_grad=True)

    def evaluate():
        return torch.autograd.grad(model(x), x)

    evaluate()
    assert 5 < peak_beside_backbone(model, evaluate) < 15
    assert 0.5 < backbone_share(model, evaluate) < 1
