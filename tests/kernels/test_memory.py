"""Nothing of size atoms x wave vectors, or atoms x atoms, is ever stored: the CPU paths' largest tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.problems import lattice_problem, submodule

F64 = torch.float64


class Largest(TorchDispatchMode):
    """Bytes of the largest result of any operation inside."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def lattice(n_atoms, generator):
    cells = (n_atoms / 0.1) ** (1 / 3) * torch.eye(3, dtype=F64)[None]
    return lattice_problem([n_atoms], 1, generator, cells=cells, channels=1)


@pytest.mark.parametrize("op", ["structure_factor", "lattice_field"])
def test_lattice_sums(op, generator):
    problem = lattice(3000, generator)
    grid = problem.grid
    with Largest() as largest:
        if op == "structure_factor":
            function = submodule("structure_factor.cpu").structure_factor_cpu
            function(problem.frac, problem.moments, grid.points, grid.atom_ptr)
        else:
            function = submodule("lattice_field.cpu").lattice_field_cpu
            function(problem.frac, problem.coefficients, grid.points, grid.atom_ptr, 1, F64)
    # a chunk's tables are 6 MB; everything at once is a sine and a cosine for every pair
    everything = 2 * 3000 * grid.n_points * 8
    assert 1e6 < largest.bytes < everything / 15


def test_pair_sums(generator):
    n = 1200
    positions = 30 * torch.rand(n, 3, generator=generator, dtype=F64)
    moments = torch.randn(n, 1, 1, 4, generator=generator, dtype=F64)
    function = submodule("gaussian_pairs.cpu").gaussian_pairs_chunked
    with Largest() as largest:
        function(positions, moments, torch.tensor([2.0], dtype=F64), torch.tensor([0, n]), 1, 0.0, 1)
    assert 1e5 < largest.bytes < 2e6  # of 12
