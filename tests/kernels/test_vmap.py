"""torch.vmap of every operator, and batched gradients, against a loop."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import lattice_problem, pointers, submodule, system_of
from scfmlip_kernels import gaussian_pairs, lattice_field, segment_expand, segment_sum, structure_factor

F64 = torch.float64
BATCH = 3
WIDTHS = torch.tensor([1.3], dtype=F64)


def operators(generator, device="cpu"):
    """Each as a function of its geometry and its values."""
    problem = lattice_problem([3, 0, 2], 1, generator, device, cutoff=1.8)
    grid, weight = problem.grid, problem.grid.weight[:, None, None]
    host_ptr = pointers([3, 0, 2])
    ptr, index = host_ptr.to(device), system_of([3, 0, 2]).to(device)
    pairs = torch.randn(5, 2, 1, 4, generator=generator, dtype=F64).to(device)
    return {
        "structure_factor": (
            lambda u, m: weight * structure_factor(u, m, grid),
            problem.frac,
            problem.moments,
        ),
        "lattice_field": (
            lambda u, p: lattice_field(u, weight * p, grid, 1, F64),
            problem.frac,
            problem.coefficients,
        ),
        "gaussian_pairs": (
            lambda r, m: gaussian_pairs(r, m, WIDTHS, host_ptr, 1),
            4 * problem.frac,
            pairs,
        ),
        "segment_sum": (lambda u, m: segment_sum(m, ptr, index), problem.frac, problem.moments),
        "segment_expand": (
            lambda u, m: segment_expand(m, ptr, index),
            problem.frac,
            problem.moments[:3].contiguous(),
        ),
    }


NAMES = ["structure_factor", "lattice_field", "gaussian_pairs", "segment_sum", "segment_expand"]


@pytest.mark.parametrize("in_dims", [(None, 0), (None, 1), (None, -1), (0, None), (0, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_values(name, in_dims, generator):
    function, geometry, values = operators(generator)[name]
    if "segment" in name and in_dims[1] is None:
        pytest.skip("values are all there is to batch")
    rows = [(geometry + 0.1 * i, values * (1 + i)) for i in range(BATCH)]
    arguments = [
        (geometry, values)[a] if dim is None else torch.stack([row[a] for row in rows], dim)
        for a, dim in enumerate(in_dims)
    ]
    got = torch.vmap(function, in_dims=in_dims)(*arguments)
    for i in range(BATCH):
        one = [(geometry, values)[a] if dim is None else rows[i][a] for a, dim in enumerate(in_dims)]
        assert_close(got[i], function(*one))


@pytest.mark.parametrize("name", NAMES)
def test_batched_gradients(name, generator):
    """`is_grads_batched`, as Jacobians and Hessians use it: first and second derivatives."""
    function, geometry, values = operators(generator)[name]
    geometry, values = geometry.clone().requires_grad_(), values.clone().requires_grad_()
    wanted = (values,) if "segment" in name else (geometry, values)
    value = function(geometry, values).square()
    directions = torch.randn(BATCH, *value.shape, generator=generator, dtype=F64)
    batched = torch.autograd.grad(value, wanted, directions, is_grads_batched=True, create_graph=True)
    for i in range(BATCH):
        alone = torch.autograd.grad(value, wanted, directions[i], create_graph=True)
        for b, a in zip(batched, alone, strict=True):
            assert_close(b[i], a)
        second = torch.autograd.grad(sum(b[i].sin().sum() for b in batched), wanted, retain_graph=True)
        want = torch.autograd.grad(sum(a.sin().sum() for a in alone), wanted, retain_graph=True)
        for b, a in zip(second, want, strict=True):
            assert_close(b, a)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", NAMES[:3])
def test_kernels(name, generator, device):
    """Batched values are further channels of one launch."""
    function, geometry, values = operators(generator, device)[name]
    batch = torch.stack([values * (1 + i) for i in range(BATCH)])
    got = torch.vmap(function, in_dims=(None, 0))(geometry, batch)
    for i in range(BATCH):
        assert_close(got[i], function(geometry, batch[i]))


@pytest.mark.interpreter
@pytest.mark.parametrize("name", NAMES[:3])
def test_more_channels_than_a_launch_takes(name, generator, device, monkeypatch):
    """The second dimension of a grid is limited on CUDA; a batch becomes channels."""
    monkeypatch.setattr("scfmlip_kernels.lattice.tiles._MOST_CHANNELS", 3)
    function, geometry, values = operators(generator, device)[name]
    batch = torch.stack([values * (1 + i) for i in range(BATCH)])
    got = torch.vmap(function, in_dims=(None, 0))(geometry, batch)
    for i in range(BATCH):
        assert_close(got[i], function(geometry, batch[i]))


def test_places_beyond_32_bits():
    tiles = submodule("lattice.tiles")
    tiles.check_places("structure_factor", 2**31 // 4 - 1, 4)
    with pytest.raises(ValueError, match=r"structure_factor: 536870912 atoms .* split the batch"):
        tiles.check_places("structure_factor", 2**31 // 4, 4)


@pytest.mark.interpreter
def test_columns_beyond_32_bits(generator, device):
    """Columns 2^30 numbers apart: no such tensor is stored, the copy that the kernels get is small."""
    near = submodule("indexed_linear.kernel")._near
    far = torch.empty(1, 1, 3, device="meta").as_strided((1, 1, 3), (1, 1, 2**30))
    assert near(far).stride() == (3, 3, 1)
    assert near(far[..., :1]).stride(2) == 2**30
