"""Costs of charge solves: the constants that times were made from, and a trial of what is timed."""

import pytest
import torch
import triton
from kernels.problems import submodule

from bench import charge_costs
from bench.charge_costs import QUICK, Sizes, calls, fit
from scfmlip_kernels.charge_solve.choice import one_launch_pays
from scfmlip_kernels.charge_solve.kernel import solve_options
from scfmlip_kernels.tuned import tuned

F64, CPU = torch.float64, torch.device("cpu")
TRUE = {"launch": 3000.0, "tile": 900.0, "step": 2000.0, "byte": 4e-4, "cube": 7e-4, "pair": 2e-3}


def made_of(constants, sizes, costs, kernel):
    """Milliseconds by the model, with 5 us of everything else in each call."""
    times = {"read": 1e-6 * sizes.read * 8 * constants["byte"]}
    for steps in (sizes.short, sizes.long):
        for n in (sizes.few, sizes.many):
            tiles = triton.cdiv(n, solve_options(n, kernel)[1])
            step = tiles * constants["tile"] + constants["step"]
            times[f"kernel {n} {steps}"] = 0.005 + 1e-6 * steps * step
        for n in (sizes.small, sizes.large):
            pairs = n**2 * costs["waves_per_atom"] * constants["pair"]
            step = max(costs["iteration_launches"] * constants["launch"], pairs)
            times[f"many {n} {steps}"] = 0.005 + 1e-6 * steps * step
    for n in (sizes.made_few, sizes.made_many):
        times[f"made {n}"] = 0.005 + 1e-6 * n**3 * constants["cube"]
    return times


def test_fit():
    """The constants come back; what was counted stays."""
    costs, kernel = tuned("charge_solve_costs", CPU, F64), tuned("charge_solve", CPU, F64)
    found = fit(made_of(TRUE, Sizes(), costs, kernel), Sizes(), costs, kernel, F64)
    assert set(found) == set(costs)
    assert found["measured"] is True
    for name, cost in found.items():
        if name != "measured":
            assert cost == pytest.approx(TRUE.get(name, costs[name]), rel=1e-9), name


def test_times_that_make_no_sense():
    """A larger system that takes less time: no table is proposed."""
    costs, kernel = tuned("charge_solve_costs", CPU, F64), tuned("charge_solve", CPU, F64)
    times = made_of(TRUE, Sizes(), costs, kernel)
    times["made 1000"] = 0.5 * times["made 250"]
    with pytest.raises(RuntimeError, match="the times give no cube"):
        fit(times, Sizes(), costs, kernel, F64)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), F64])
def test_what_is_timed(dtype, monkeypatch):
    """Walks are cut where they should be; matrices are made for one launch; the table is as before."""
    table = submodule("tuned")._table
    table.cache_clear()
    costs, name = table("cpu"), str(dtype).removeprefix("torch.")
    before = dict(costs["charge_solve_costs"][name])
    for call, run in calls(QUICK, dtype, CPU).items():
        found = run()
        if call.startswith(("kernel", "many")):
            assert int(found.iterations.max()) == int(call.split()[-1]), call
    launches = []
    kernel = submodule("charge_solve.op").launch_charge_solve
    monkeypatch.setattr(
        submodule("charge_solve.op"), "launch_charge_solve", lambda *a: launches.append(1) or kernel(*a)
    )
    # times of an interpreter are noise: those of the model instead, after every call ran
    real = charge_costs.interleaved

    def timed(made, *rest):
        real(made, *rest)
        times = made_of(TRUE, QUICK, before, costs["charge_solve"][name])
        return {k: type("T", (), {"median": t}) for k, t in times.items()}

    monkeypatch.setattr(charge_costs, "interleaved", timed)
    found = charge_costs.measure(costs, CPU, dtype, True, 0.001)
    assert found["measured"]
    assert len(launches) >= 6
    assert costs["charge_solve_costs"][name] == before
    table.cache_clear()
    assert one_launch_pays(torch.tensor([100]), torch.zeros(0, dtype=dtype))
