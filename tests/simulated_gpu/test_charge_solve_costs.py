"""The table that charge solves are chosen by holds the launches of today's solvers."""

import pytest
import torch

from scfmlip.scf.equilibration import DENSE_UP_TO
from scfmlip_kernels.tuned import tuned
from simulated_gpu.charge_solves import count

F64 = torch.float64


def costs():
    return tuned("charge_solve_costs", torch.device("cpu"), F64)


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
def test_launches():
    """To 3%: who changes a solver counts again, by ``python -m simulated_gpu.charge_solves``."""
    one, many, table = count(True), count(False), costs()
    assert one.launches == pytest.approx(table["one_launches"], rel=0.03)
    assert many.launches == pytest.approx(table["many_launches"], rel=0.03)
    assert many.iteration_launches == pytest.approx(table["iteration_launches"], rel=0.03)
    # the diagonal is the weaker preconditioner
    assert many.iterations < one.iterations


def test_what_would_be_factorised():
    """The number is the solvers', which the kernels cannot read."""
    assert costs()["factorised"] == DENSE_UP_TO
