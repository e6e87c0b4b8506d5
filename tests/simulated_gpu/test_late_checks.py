"""Steps inside `late_checks`: nothing waits, numbers are those of plain steps, errors come when it ends."""

import pytest
import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import held, simulated_gpu
from simulated_gpu.test_simulated_gpu import (
    ALL,
    F64,
    outputs,
    polar_case,
    rule,
    rule_case,
    to_gpu,
)

SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
pytestmark = [SOME, pytest.mark.interpreter]
RECURSION = "rule recursion"
CASES = {name: ALL[name] for name in ("charges", "rule local", "polar crystal", "polar molecule")}
CASES |= {RECURSION: rule("recursion", "periodic"), "training polar": ALL["training polar"]}
LONG = ("polar crystal", "polar molecule", RECURSION, "training polar")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CASES]
)
def test_nothing_waits_inside(case):
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log:
        call = CASES[case](to_gpu)
        want = [held(t.detach()).clone() for t in call()]
        with scfmlip.late_checks():
            log.clear()
            got = call()
            assert not log.n_waits, log.report()
        assert log.n_waits == 1, log.report()
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(held(a.detach()), b, rtol=1e-12, atol=1e-12)


def local_steps(place):
    torch.set_default_dtype(F64)
    model, batch = rule_case("local", "periodic")(place)
    return batch, lambda given: outputs(model(given))


@pytest.mark.slow
def test_a_cell_that_changes_inside_is_an_error_at_the_end():
    with scfmlip_kernels.backend("auto"), simulated_gpu():
        batch, call = local_steps(to_gpu)
        call(dict(batch))
        with pytest.raises(RuntimeError, match=r"late_checks.*cells.*changed"), scfmlip.late_checks():
            call(batch | {"cell": 1.01 * batch["cell"]})
        with scfmlip.late_checks():  # which has forgotten it
            call(dict(batch))


def test_the_error_of_a_step_comes_at_the_end():
    with scfmlip_kernels.backend("auto"), simulated_gpu():
        geometry = scfmlip.Coulomb(l_max=0).prepare(to_gpu(torch.rand(3, 3)), to_gpu(9.0 * torch.eye(3)))
        checks = scfmlip.late_checks()
        checks.__enter__()
        geometry.energy(to_gpu(torch.full((3, 1), torch.nan)))
        with pytest.raises(ValueError, match="multipoles holds NaN"):
            checks.__exit__(None, None, None)


def test_on_a_cpu_nothing_is_late():
    geometry = scfmlip.Coulomb(l_max=0).prepare(torch.rand(3, 3), 9.0 * torch.eye(3))
    with scfmlip.late_checks(), pytest.raises(ValueError, match="multipoles holds NaN"):
        geometry.energy(torch.full((3, 1), torch.nan))


@pytest.mark.slow
def test_another_batch_inside_is_looked_at_as_outside():
    """Of other sizes, it has plans of its own."""
    with scfmlip_kernels.backend("auto"), simulated_gpu():
        model, batch = polar_case(to_gpu)
        first = held(model(dict(batch))["energy"].detach()).clone()
        from mace_torch.polar_models import batch_of, random_frames

        other = to_gpu(batch_of(random_frames([(True,) * 3], n_atoms=6, box=7.0), model))
        with scfmlip.late_checks():
            model(dict(other))
            again = model(dict(batch))["energy"]
        assert torch.equal(held(again.detach()), first)
