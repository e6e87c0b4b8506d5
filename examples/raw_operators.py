"""The operators without models: a layer of one's own, and an Ewald sum from its two halves."""

# %% layer
import torch

import scfmlip_kernels as kernels
from scfmlip.nn import ChannelwiseConv, IndexedLinear

torch.manual_seed(0)
n_nodes, n_edges, n_channels = 200, 3000, 16
senders = torch.randint(n_nodes, (n_edges,))
receivers = torch.randint(n_nodes, (n_edges,))
edges = kernels.sort_edges(senders, receivers, n_nodes)  # once for a neighbour list
# scalars times vectors make vectors, vectors times vectors make scalars
scalars_to_vectors = kernels.ProductPath(0, 1, tuple((0, j, j, 1.0) for j in range(3)), 3)
vectors_to_scalars = kernels.ProductPath(1, 1, tuple((j, j, 0, 3**-0.5) for j in range(3)), 1)
product = kernels.ChannelwiseProduct(
    x=((n_channels, 1), (n_channels, 3)),
    y=(1, 3),
    paths=(scalars_to_vectors, vectors_to_scalars),
)
print(f"{product.weight_numel} weights of an edge, {product.out_dim} numbers of a node")

# %% convolve
x = torch.randn(n_nodes, 4 * n_channels, dtype=torch.float64, requires_grad=True)
vectors = torch.nn.functional.normalize(torch.randn(n_edges, 3, dtype=torch.float64), dim=1)
y = torch.cat([torch.ones(n_edges, 1, dtype=torch.float64), vectors], 1)
weights = torch.randn(n_edges, product.weight_numel, dtype=torch.float64, requires_grad=True)
out = ChannelwiseConv(product)(x, y, weights, edges)

plain = torch.zeros_like(out)
w = weights.unflatten(1, (2, n_channels))
there = x[senders]
to_vectors = w[:, 0, None] * there[:, None, :n_channels] * y[:, 1:, None]  # [edge, component, channel]
inner = (there[:, n_channels:].unflatten(1, (n_channels, 3)) * y[:, None, 1:]).sum(2) * 3**-0.5
messages = torch.cat([to_vectors.transpose(1, 2).flatten(1), w[:, 1] * inner], 1)
plain = plain.index_add(0, receivers, messages)
error, largest = (out - plain).abs().max().item(), plain.abs().max().item()
print(f"largest difference to plain PyTorch {error:.0e} of {largest:.0f}")

# %% derivative
first = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]
second = torch.autograd.grad(first.square().sum(), weights)[0]
print("second derivatives:", list(second.shape), f"norm {second.norm().item():.3e}")

# %% species
species = torch.randint(3, (n_nodes,))
linear = IndexedLinear(n_species=3, n_in=n_channels, n_out=8).double()
rows = linear(x[:, None, :n_channels], species)
one = x[5, :n_channels] @ linear.weights[species[5]]
print(f"node 5 by hand: difference {(rows[5, 0] - one).abs().max().item():.0e}")

# %% ewald
n_atoms, edge, sigma = 60, 9.0, 1.0
frac = torch.rand(n_atoms, 3, dtype=torch.float64)
charges = torch.randn(n_atoms, dtype=torch.float64)
charges -= charges.mean()
cell = edge * torch.eye(3, dtype=torch.float64)
grid = kernels.build_lattice_grid(cell[None], 8.0, torch.tensor([0, n_atoms]))  # up to 8 / angstrom
factor = kernels.structure_factor(frac, charges[:, None, None], grid)
waves = grid.miller.double() @ torch.linalg.inv(cell).T * 2 * torch.pi
square = waves.square().sum(1)
green = torch.where(square > 0, 4 * torch.pi / square.clamp(min=1e-9) * torch.exp(-square * sigma**2), 0.0)
# half of the sphere is stored: the other half is its mirror
series = factor * (2 * grid.weight * green / edge**3)[:, None, None]
potential = 14.399645 * kernels.lattice_field(frac, series, grid, 0, torch.float64)[:, 0, 0]
energy = 0.5 * (charges * potential).sum()

import scfmlip

geometry = scfmlip.Coulomb(l_max=0, sigma=sigma, self_interaction=True, tolerance=1e-10).prepare(
    frac @ cell, cell
)
print(f"energy {energy.item():.6f} eV, by scfmlip.Coulomb {geometry.energy(charges[:, None]).item():.6f} eV")

# %% picture
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
order = square.sqrt().argsort()
share = (14.399645 * grid.weight * green * factor[:, 0].square().sum(1) / edge**3)[order]
axis.plot(square.sqrt()[order], share.cumsum(0), drawstyle="steps-post")
axis.axhline(energy.item(), color="0.7", linewidth=1, zorder=0)
axis.set(xlabel="largest wave vector (1/Å)", ylabel="energy of the waves up to it (eV)", xlim=(0, 8))
figure.savefig("raw_operators.png", dpi=120)
