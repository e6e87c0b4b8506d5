"""
Agreement before time: no provider's number is printed unless its values and derivatives are right.

The judge is our own operator in float64 on the same inputs, which is itself compared with plain PyTorch in
float64 (`bench.dense`) once per case.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .problems import Problem
from .providers import Function, Unavailable, providers
from .registry import Mode, Size

Call = Callable[[], tuple[Tensor, ...]]

# Largest difference over largest value, of the output and of each derivative
TOLERANCES: dict[torch.dtype, dict[Mode, float]] = {
    torch.float32: {"forward": 5e-5, "forward_backward": 5e-5, "double_backward": 2e-4},
    torch.float64: {"forward": 1e-8, "forward_backward": 1e-8, "double_backward": 1e-8},
}
# Where a provider's method has an error of its own, whatever the dtype: meshes
METHOD_ERROR = {"scfmlip-mesh": 5e-5, "torch-pme-mesh": 5e-5, "nvalchemi-pme": 5e-5}
# graph_longrange's open boundary takes finite differences over 0.02 angstrom: in float32 their noise
FINITE_DIFFERENCES = ("graph-longrange", "scfmlip-compat")
FINITE_DIFFERENCE_NOISE = 5e-3
# nvalchemi sums batches over a box of wave vectors around the sphere: it differs by the sphere's truncation
BATCH_ERROR = {"nvalchemi": 1e-6}


class Disagreement(Exception):
    """A provider's numbers differ from ours; the message says by how much."""


def make_call(
    problem: Problem, function: Function, mode: Mode, leaves: tuple[Tensor, Tensor] | None = None
) -> Call:
    """What is timed: the function and the derivatives that the mode asks for, as a tuple of tensors."""
    where, what = leaves or problem.leaves()
    weights: list[Tensor] = []

    def scalar(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        output = function(a, b)
        if not weights:
            weights.append(problem.weights(output.detach()))
        return output, (output * weights[0]).sum()

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(where, what),)

    def forward_backward() -> tuple[Tensor, ...]:
        a, b = where.detach().requires_grad_(), what.detach().requires_grad_()
        output, total = scalar(a, b)
        return output.detach(), *torch.autograd.grad(total, (a, b))

    def double_backward() -> tuple[Tensor, ...]:
        a, b = where.detach().requires_grad_(), what.detach().requires_grad_()
        output, total = scalar(a, b)
        first = torch.autograd.grad(total, (a, b), create_graph=True)
        norm = sum((g**2).sum() for g in first)
        assert isinstance(norm, Tensor)
        second = torch.autograd.grad(norm, (a, b))
        return output.detach(), *(g.detach() for g in first), *second

    calls: dict[Mode, Call] = {
        "forward": forward,
        "forward_backward": forward_backward,
        "double_backward": double_backward,
    }
    return calls[mode]


def reference(problem: Problem, mode: Mode, provider: str = "scfmlip") -> tuple[Tensor, ...]:
    """A provider's float64 values on the (rounded) inputs of ``problem``."""
    exact = problem.to(torch.float64)
    where, what = problem.leaves()
    function = providers()[provider].build(exact)
    return make_call(exact, function, mode, (where.double(), what.double()))()


def difference(problem: Problem, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Largest difference of any output or derivative, over its largest value."""
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            raise Disagreement(f"shape {list(a.shape)} instead of {list(b.shape)}")
        if not bool(torch.isfinite(a).all()):
            raise Disagreement(f"NaN or infinity in output {i}")
        keep = problem.weights(b) != 0 if i == 0 else torch.ones_like(b, dtype=torch.bool)
        scale = float(b[keep].abs().max())
        worst = max(worst, float((a.double() - b.double())[keep].abs().max()) / max(scale, 1e-300))
    return worst


def tolerance(problem: Problem, provider: str, mode: Mode) -> float:
    """What a provider may differ by."""
    allowed = TOLERANCES[problem.dtype][mode]
    if problem.size.systems > 1:
        allowed = max(allowed, BATCH_ERROR.get(provider, 0.0))
    if problem.case.open_boundary and provider in FINITE_DIFFERENCES and problem.dtype == torch.float32:
        allowed = max(allowed, FINITE_DIFFERENCE_NOISE)
    return max(allowed, METHOD_ERROR.get(provider, 0.0))


def judge_of(problem: Problem, provider: str) -> str:
    """Whose float64 values a provider is compared with."""
    quirky = problem.case.open_boundary and provider in FINITE_DIFFERENCES
    return "scfmlip-compat" if quirky else "scfmlip"


def check_judge(problem: Problem, mode: Mode) -> float:
    """Compare our float64 values with plain PyTorch's on a small problem of the same case."""
    from .problems import make_problem

    small = make_problem(problem.case, Size(24, 1), torch.float64, problem.device)
    error = difference(small, reference(small, mode), reference(small, mode, "torch"))
    if error > 1e-9:
        raise Disagreement(f"{problem.case.name} {mode}: scfmlip and plain PyTorch differ by {error:.1e}")
    return error


def verified_call(
    problem: Problem, provider: str, mode: Mode, truth: dict[str, tuple[Tensor, ...]]
) -> tuple[Call, float]:
    """
    A provider's call, after it agreed with ours.

    Args:
        problem: The inputs.
        provider: Its name.
        mode: What is computed.
        truth: Float64 values found so far, by judge; filled here.

    Returns:
        The call, and its error.

    Raises:
        Unavailable: if the provider cannot do this here.
        Disagreement: if it does something else.
    """
    judge = judge_of(problem, provider)
    if judge not in truth:
        truth[judge] = reference(problem, mode, judge)
    call = make_call(problem, providers()[provider].build(problem), mode)
    try:
        got = call()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise Unavailable("out of memory") from None
        raise Unavailable(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    error = difference(problem, got, truth[judge])
    allowed = tolerance(problem, provider, mode)
    if not error <= allowed:
        raise Disagreement(f"differs by {error:.1e}, allowed {allowed:.0e}")
    return call, error
