"""What leaves the process: exported and compiled graphs, spawned and forked workers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import assert_close

from kernels.convolutions import Problem, plain_product
from kernels.problems import submodule
from kernels.test_symmetric_contraction import dependent_blocks
from scfmlip_kernels import (
    ChannelwiseProduct,
    ProductPath,
    SymmetricPolynomial,
    channelwise_conv,
    sort_edges,
    symmetric_contraction,
)
from scfmlip_kernels.registry import describe, described

ROOT = Path(__file__).parents[2]
RUN = """
import sys, torch, scfmlip_kernels
program, inputs, out = sys.argv[1:]
if program.endswith("package.pt2"):
    call = torch._inductor.aoti_load_package(program)
else:
    call = torch.export.load(program).module()
with scfmlip_kernels.backend("cpu"):
    torch.save([call(*given) for given in torch.load(inputs)], out)
"""


class Layer(torch.nn.Module):
    """A convolution and a contraction of a graph that is an input; the polynomial has weights to merge."""

    def __init__(self, generator):
        super().__init__()
        self.product = plain_product((2, 1))
        self.polynomial = SymmetricPolynomial.from_dense(dependent_blocks(generator))
        n_channels = self.product.out_dim
        weights = torch.randn(3, self.polynomial.n_weights, n_channels, generator=generator)
        self.weights = torch.nn.Parameter(weights)

    def forward(self, sender, receiver, species, x, y, w):
        edges = sort_edges(sender, receiver, x.shape[0])
        out = channelwise_conv(x, y, w, edges, self.product)
        rows = torch.stack([out * (n + 1) for n in range(self.polynomial.n_inputs)], -1)
        return symmetric_contraction(rows, self.weights, species, self.polynomial)


def arguments(layer, n_nodes, n_edges, generator):
    problem = Problem(layer.product, n_nodes, n_edges, generator, dtype=torch.float32)
    species = torch.randint(3, (n_nodes,), generator=generator)
    return problem.sender, problem.receiver, species, problem.x, problem.y, problem.weights


def exported(layer, given):
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    shapes = ({0: edges}, {0: edges}, {0: nodes}, {0: nodes}, {0: edges}, {0: edges})
    with torch.no_grad():
        return torch.export.export(layer, given, dynamic_shapes=shapes)


def assert_runs_elsewhere(program, layer, folder, generator):
    given = [arguments(layer, *sizes, generator) for sizes in ((4, 7), (5, 3))]
    torch.save(given, folder / "inputs.pt")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "ignore", "-c", RUN, program, folder / "inputs.pt", folder / "out.pt"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for got, one in zip(torch.load(folder / "out.pt"), given, strict=True):
        assert_close(got, layer(*one))


def test_an_exported_graph_runs_in_another_process(generator, tmp_path):
    """Nothing but the file: descriptions travel in it, merged weights too."""
    layer = Layer(generator)
    program = exported(layer, arguments(layer, 3, 5, generator))
    torch.export.save(program, tmp_path / "layer.pt2")
    assert_runs_elsewhere(tmp_path / "layer.pt2", layer, tmp_path, generator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's
def test_a_compiled_package_runs_in_another_process(generator, tmp_path):
    layer = Layer(generator)
    program = exported(layer, arguments(layer, 3, 5, generator))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    assert_runs_elsewhere(path, layer, tmp_path, generator)


def _worker(text, n, queue):
    torch.set_num_threads(1)
    product = described(text, ChannelwiseProduct)
    problem = Problem(product, 3, n, torch.Generator().manual_seed(n))
    value = problem.value(*(leaves := problem.leaves()))
    (gradient, *_) = torch.autograd.grad(value.square().sum(), leaves)
    queue.put(gradient.numpy())  # no shared memory, so that the worker may end


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method, generator):
    """A process that starts later knows descriptions made here, and computes the same."""
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} does not exist here")
    context = torch.multiprocessing.get_context(method)
    text, queue = describe(plain_product((2, 2))), context.SimpleQueue()
    process = context.Process(target=_worker, args=(text, 5, queue))
    process.start()
    got = torch.from_numpy(queue.get())
    process.join()
    assert process.exitcode == 0
    problem = Problem(plain_product((2, 2)), 3, 5, torch.Generator().manual_seed(5))
    leaves = problem.leaves()
    (want, *_) = torch.autograd.grad(problem.value(*leaves).square().sum(), leaves)
    assert_close(got, want)


def test_descriptions_are_text(generator):
    p = SymmetricPolynomial.from_dense(dependent_blocks(generator))
    text = describe(p)
    assert describe(p) is text
    assert described(text, SymmetricPolynomial) == p
    assert described(text, SymmetricPolynomial) is described(text, SymmetricPolynomial)
    # numbers of numpy are numbers
    path = ProductPath(np.int64(0), 0, ((np.int32(0), 0, 0, np.float32(0.5)),), np.int64(1))
    product = ChannelwiseProduct(((np.int64(2), 1),), (1,), (path,))
    assert described(describe(product), ChannelwiseProduct) == product


@pytest.mark.parametrize("text", ["b1c7063802427162", "[1,2]", '["Other",1]', '["ChannelwiseProduct",3]'])
def test_what_is_no_description(text):
    with pytest.raises(
        ValueError, match=r"is not the text of a ChannelwiseProduct .* export the graph again"
    ):
        described(text, ChannelwiseProduct)


def test_descriptions_are_forgotten(monkeypatch):
    """Those of models that are gone; nothing grows without a limit."""
    registry = submodule("registry")
    monkeypatch.setattr(registry, "_MAX_TEXTS", 3)
    monkeypatch.setattr(registry, "_texts", registry.OrderedDict())
    for n in range(1, 9):
        describe(SymmetricPolynomial(n, 1, 1, ()))
    assert len(registry._texts) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coefficients_are_finite(value):
    with pytest.raises(ValueError, match="has the coefficient"):
        describe(SymmetricPolynomial(1, 1, 1, (((0,), 0, 0, value),)))
    with pytest.raises(ValueError, match="has the coefficient"):
        describe(ChannelwiseProduct(((1, 1),), (1,), (ProductPath(0, 0, ((0, 0, 0, value),), 1),)))
