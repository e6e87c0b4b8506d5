"""One-launch solves against bordered systems; ragged batches; failures; the kernel compiled for GPUs."""

import os
import subprocess
import sys

import pytest
import torch
from tolerances import assert_close

from kernels.problems import submodule
from scfmlip_kernels import charge_solve
from scfmlip_kernels.charge_solve.choice import one_launch_pays, solve_times
from scfmlip_kernels.charge_solve.reference import charge_solve_reference
from scfmlip_kernels.tuned import tuned

F64 = torch.float64
BACKENDS = ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)]


def problem(sizes, generator, device="cpu", dtype=F64):
    """Positive matrices of a condition near a hundred, sources and totals."""
    matrices = []
    for n in sizes:
        root = torch.randn(n, n, generator=generator, dtype=F64)
        matrices.append((root @ root.T / max(n, 1) * 10 + 0.5 * torch.eye(n, dtype=F64)).flatten())
    n_atoms = sum(sizes)
    source = torch.randn(n_atoms, generator=generator, dtype=F64)
    totals = torch.randn(len(sizes), generator=generator, dtype=F64)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    flat = torch.cat([*matrices, torch.zeros(0, dtype=F64)])
    return flat.to(device, dtype), source.to(device), totals.to(device), ptr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("sizes", [[1], [2, 1, 5], [15, 16, 17, 3], [33, 1], [65]])
def test_against_the_bordered_system(sizes, constrained, backend, generator, device):
    """Sizes around every block edge; a single charge is its total."""
    arguments = problem(sizes, generator, device)
    want, slope = charge_solve_reference(*arguments, constrained)
    got = charge_solve(*arguments, constrained=constrained, tolerance=1e-13)
    assert got.status.tolist() == [0] * len(sizes)
    assert_close(got.state, want, 1e-10)
    assert float((got.slope - slope).abs().max()) < 1e-10
    assert float(got.residual.max()) <= 1e-12


@pytest.mark.interpreter
def test_float32_matrices(generator, device):
    """Read as float32, summed in float64: the answer of the rounded matrix."""
    matrices, *rest = problem([20, 7], generator, device, torch.float32)
    want, _ = charge_solve_reference(matrices, *rest, True)
    got = charge_solve(matrices, *rest, tolerance=0.0)
    assert got.state.dtype == F64
    assert_close(got.state, want, 1e-5)
    assert float(got.residual.max()) <= 2e-6


@pytest.mark.interpreter
def test_warm_start_and_counts(generator, device):
    """Systems stop one by one; from the answer there is nothing to do."""
    arguments = problem([6, 30], generator, device)
    cold = charge_solve(*arguments, tolerance=1e-10)
    assert int(cold.iterations[0]) <= 6 < int(cold.iterations[1])
    warm = charge_solve(*arguments, cold.state, tolerance=1e-9)
    assert warm.iterations.tolist() == [0, 0]
    few = charge_solve(*arguments, tolerance=1e-10, max_iterations=8)
    assert few.status.tolist() == [0, 1]
    assert int(few.iterations[1]) == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_failures_stay_in_their_system(backend, generator, device):
    """Indefinite, and NaN: the other systems are right."""
    matrices, source, totals, ptr = problem([5, 6, 4, 7], generator, device)
    want, _ = charge_solve_reference(matrices, source, totals, ptr, True)
    matrices[25 : 25 + 36] -= 20 * torch.eye(6, dtype=F64, device=device).flatten()
    source[ptr[2]] = torch.nan
    got = charge_solve(matrices, source, totals, ptr, tolerance=1e-12)
    assert got.status.tolist() == [0, 2, 3, 0]
    for i in (0, 3):
        assert_close(got.state[ptr[i] : ptr[i + 1]], want[ptr[i] : ptr[i + 1]], 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend, generator, device):
    """No systems; a source that is 0."""
    empty = charge_solve(*problem([], generator, device))
    assert empty.state.shape == (0,)
    matrices, source, totals, ptr = problem([3, 4], generator, device)
    got = charge_solve(matrices, 0 * source, 0 * totals, ptr)
    assert got.status.tolist() == [0, 0]
    assert_close(got.state, torch.zeros(7, dtype=F64))


def test_opcheck_and_bad_input(generator):
    arguments = problem([3, 4], generator)
    torch.library.opcheck(
        torch.ops.scfmlip.charge_solve, (*arguments, torch.zeros(7, dtype=F64), 1e-6, 10, True)
    )
    matrices, source, totals, ptr = arguments
    with pytest.raises(ValueError, match=r"matrices must be \[25\]"):
        charge_solve(matrices[1:], source, totals, ptr)
    with pytest.raises(TypeError, match="source must be float64"):
        charge_solve(matrices, source.float(), totals, ptr)
    with pytest.raises(ValueError, match="totals must be"):
        charge_solve(matrices, source, totals[:1], ptr)
    with pytest.raises(ValueError, match=r"starts, first elements must be \[3\]"):
        charge_solve(matrices, source, totals, ptr, starts=(ptr, ptr[1:]))
    with pytest.raises(TypeError, match="starts, first atoms must be int64"):
        charge_solve(matrices, source, totals, ptr, starts=(ptr.double(), ptr))
    with pytest.raises(NotImplementedError, match="no derivatives"):
        charge_solve(matrices.requires_grad_(), source, totals, ptr)
    with pytest.raises(ValueError, match="2049 atoms, at most 2048"):
        charge_solve(torch.zeros(2049**2), torch.zeros(2049, dtype=F64), totals[:1], torch.tensor([0, 2049]))


@pytest.mark.interpreter
def test_given_starts(generator, device):
    """Tables of the first atoms and elements, made by the caller, who then waits for nothing."""
    matrices, source, totals, ptr = problem([5, 0, 7], generator, device)
    want = charge_solve(matrices, source, totals, ptr, tolerance=1e-12)
    starts = (ptr.to(device), torch.tensor([0, 25, 25, 74], device=device))
    got = charge_solve(matrices, source, totals, ptr, tolerance=1e-12, starts=starts)
    assert torch.equal(got.state, want.state)


@pytest.mark.interpreter
@pytest.mark.parametrize("n", [1025, 2048])
def test_large_systems(n, generator, device):
    """More atoms than a thread's vectors hold by default: other tiles and more warps."""
    arguments = problem([n], generator, device)
    got = charge_solve(*arguments, tolerance=1e-8, max_iterations=3)
    matrix, source, total = arguments[0].view(n, n).cpu(), arguments[1].cpu(), arguments[2].cpu()
    # as far as three iterations go: the slope belongs to the state, and the sum is right
    assert_close(got.slope.cpu(), matrix @ got.state.cpu() + source, 1e-12)
    assert abs(float(got.state.sum() - total)) < 1e-11
    assert got.iterations.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_which_batches_are_worth_one_launch(dtype):
    """By work: what would be factorised always; one of 600 atoms, not a hundred of 1,000."""
    like = torch.zeros(0, dtype=dtype)

    def times(sizes, processors=132):
        return solve_times(torch.tensor(sizes), dtype, like.device, processors)

    for sizes in ([1], [100] * 64, [256] * 5000, [257] * 5000, [500] * 132, [3, 250], [600], [560] * 4):
        assert one_launch_pays(torch.tensor(sizes), like), sizes
    for sizes in ([], [0], [2049], [500] * 5000, [1000] * 132, [1024] * 1000, [1600], [2048] * 8):
        assert not one_launch_pays(torch.tensor(sizes, dtype=torch.int64), like), sizes
    # time grows with atoms and with systems, and a device that is not full takes more for nothing
    one = [times([n])[0] for n in (128, 512, 1024, 2048)]
    assert one == sorted(one)
    full, twice = times([1000] * 132)[0], times([1000] * 264)[0]
    assert times([1000])[0] < times([1000] * 2)[0] < 1.2 * times([1000])[0] < full < twice
    assert times([1000] * 264, 66)[0] > twice  # half the device
    # launches that cost nothing leave nothing to save
    assert times([600])[0] < times([600])[1]


def test_the_choice_follows_the_table(monkeypatch):
    """A faster way in many launches takes over the large systems, a slower one leaves them."""
    like, found = torch.zeros(0, dtype=F64), []
    table = dict(tuned("charge_solve_costs", like.device, F64))
    for launches in (118.5, 24, 300):
        now = {**table, "iteration_launches": launches}
        chosen = {"charge_solve_costs": now, "charge_solve": tuned("charge_solve", like.device, F64)}
        monkeypatch.setattr(submodule("charge_solve.choice"), "tuned", lambda name, *_, c=chosen: c[name])
        found.append([one_launch_pays(torch.tensor([n]), like) for n in (200, 500, 1024, 1600)])
    assert found == [[True, True, True, False], [True, True, False, False], [True] * 4]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from scfmlip_kernels.charge_solve.kernel import _charge_solve_kernel as kernel
for dtype in ("fp32", "fp64"):
    for block, rows, warps in ((128, 32, 4), (2048, 4, 8)):
        constants = {"CONSTRAINED": True, "PATIENCE": 25, "BLOCK": block, "BLOCK_ROWS": rows}
        kinds = {"matrices_ptr": "*" + dtype, "atom_ptr_ptr": "*i64", "matrix_ptr_ptr": "*i64"}
        kinds |= {"iterations_ptr": "*i64", "status_ptr": "*i64", "max_iterations": "i32"}
        names = [n for n in kernel.arg_names if n not in constants]
        signature = {n: kinds.get(n, "*fp64") for n in names} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
            options = {"num_warps": warps, "num_stages": 1}
            if target.backend == "cuda":
                options["maxnreg"] = 255
            compiled = triton.compile(source, target=target, options=options)
            assert compiled.asm.get("cubin") or compiled.asm.get("amdgcn")
            if "amdgcn" in compiled.asm:
                text = compiled.asm["amdgcn"]
                print(dtype, block, target.arch, text.split(".private_segment_fixed_size:")[1].split()[0])
            else:
                print(dtype, block, target.arch, compiled.metadata.shared)
"""


@pytest.mark.slow
def test_compiles_for_gpus():
    """Ahead of time for sm_80, sm_90 and gfx942."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("gfx942") == 4
