"""Anderson mixing for a ragged batch of systems."""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels import pseudo_inverse

from ..convergence import Criterion, Verdict, ended, given_up
from ..solution import Status
from .gmres import Map, RootResult
from .looks import Looks


def anderson(
    function: Map,
    start: Tensor,
    criterion: Criterion,
    max_iterations: int,
    mixing: float,
    history: int,
    known: tuple[Tensor, Tensor] | None = None,
) -> RootResult:
    """
    Root of ``function``, F(x) - x, by Anderson mixing of F (J. ACM 12, 547 (1965)), safeguarded.

    If a step raises a system's residual to more than twice its minimum so far, the system returns to its best
    state, clears its history, and mixes half as much from then on.

    Args:
        function: ``[n]`` -> ``[n]``.
        start: ``[n]`` float64.
        criterion: The convergence criterion.
        max_iterations: Most evaluations.
        mixing: Fraction of the residual that is added to the extrapolated state.
        history: Number of steps that are kept.
        known: The function at the start, f, and its change from there to ``start + f``.
    """
    batch = criterion.batch
    x, best_x, best_f = start, start, torch.zeros_like(start)
    states: list[Tensor] = []
    changes: list[Tensor] = []
    old_x = old_f = None
    best = torch.full_like(criterion.own, torch.inf)
    ends = Verdict(best, best, best < 0, best < 0)
    status = torch.full_like(best, int(Status.ITERATIONS), dtype=torch.int64)
    iterations = torch.zeros_like(status)
    share = torch.full_like(best, mixing)
    evaluations, looks, on_gpu = 0, Looks(), start.device.type == "cuda"
    if known is not None:
        states, changes = [known[0]], [known[1]]
    for step_number in range(max_iterations):
        if known is not None and step_number == 0:
            f = known[0]
        else:
            f = function(x)
            evaluations += 1
        active = status == Status.ITERATIONS
        iterations = iterations + active
        verdict = criterion.judge(x, f)
        finite = torch.isfinite(verdict.residual)
        worse = active & (~finite | (verdict.norm > 2 * best)) & torch.isfinite(best)
        better = active & (verdict.converged | ~(verdict.norm >= best)) & ~worse
        best_x, best_f = (torch.where(batch.expand(better), a, b) for a, b in ((x, best_x), (f, best_f)))
        best = torch.where(better & finite, verdict.norm, best)
        ends = Verdict(*(torch.where(better, new, old) for new, old in zip(verdict, ends, strict=True)))
        status = ended(status, ends)
        active = status == Status.ITERATIONS
        if looks.ended(step_number, active, ends.residual, criterion.tolerance):
            break
        moving = batch.expand(active)
        if old_x is not None and old_f is not None:
            states.append(torch.nan_to_num(x - old_x))
            changes.append(torch.nan_to_num(f - old_f))
            states, changes = states[-history:], changes[-history:]
        if on_gpu or bool(worse.any()):  # a GPU is not asked: without any, nothing changes
            forget = batch.expand(worse)
            states = [torch.where(forget, 0.0, s) for s in states]
            changes = [torch.where(forget, 0.0, c) for c in changes]
            share = torch.where(worse, 0.5 * share, share)
            x, f = torch.where(forget, best_x, x), torch.where(forget, best_f, f)
        part = batch.expand(share)
        step = part * torch.nan_to_num(f)
        if states:
            df, dx = torch.stack(changes), torch.stack(states)
            gram = torch.stack([batch.dot(df, c.expand_as(df)) for c in changes], -1).movedim(1, 0)
            size = gram.diagonal(dim1=1, dim2=2).amax(1)
            ridge = 1e-14 * size + torch.where(size > 0, 0.0, 1.0)
            eye = torch.eye(len(changes), dtype=torch.float64, device=x.device)
            right = batch.dot(df, torch.nan_to_num(f).expand_as(df)).T
            gamma = _solved(gram + ridge[:, None, None] * eye, right)
            spread = batch.expand(gamma).T
            step = step - (spread * (dx + part * df)).sum(0)
        old_x, old_f = x, f
        x = torch.where(moving, x + step, x)
    return RootResult(best_x, ends.residual, iterations, given_up(status, ends), evaluations)


def _solved(matrices: Tensor, right: Tensor) -> Tensor:
    """``A^-1 b`` of small ``[n, k, k]`` and ``[n, k]``; on a GPU without libraries, which may wait."""
    if right.is_cuda:
        return (pseudo_inverse(matrices, 0.0) @ right[..., None])[..., 0]
    return torch.linalg.solve_ex(matrices, right[..., None])[0][..., 0]
