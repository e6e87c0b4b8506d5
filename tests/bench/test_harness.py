"""The harness refuses what is wrong, and its records survive a round trip."""

import pytest
import torch

from bench.dense import energy, fields
from bench.problems import make_problem
from bench.providers import polar, providers
from bench.record import COLUMNS, Row, append, read
from bench.registry import CASES, Size
from bench.run import Run, _arguments
from bench.timing import interleaved, summarize
from bench.verify import Disagreement, check_judge, difference, make_call, verified_call

CPU = torch.device("cpu")


@pytest.mark.parametrize("text", ["2000", "100x16", "~100x16"])
def test_sizes_survive_their_text(text):
    size = Size.parse(text)
    assert str(size) == text
    assert len(size.counts) == size.systems


def test_ragged_sizes_average_to_the_nominal_one():
    assert sum(Size(100, 16, ragged=True).counts) == 1600


def test_every_provider_of_a_case_exists():
    known = providers()
    for case in CASES.values():
        assert set(case.providers) <= set(known)
        assert case.cpu
        assert case.gpu


@pytest.mark.parametrize("name", CASES)
def test_ours_agrees_with_plain_pytorch(name):
    case = CASES[name]
    problem = make_problem(case, Size(24), torch.float64, CPU)
    assert check_judge(problem, case.modes[-1]) < 1e-9


def test_a_wrong_provider_is_not_timed(monkeypatch):
    problem = make_problem(CASES["energy"], Size(24), torch.float32, CPU)
    table = providers()
    right = table["torch"].build

    def slightly_wrong(problem):
        function = right(problem)
        return lambda r, p: 1.001 * function(r, p)

    table["torch"] = table["torch"]._replace(build=slightly_wrong)
    monkeypatch.setattr("bench.verify.providers", lambda: table)
    with pytest.raises(Disagreement, match=r"differs by 1\.0e-03"):
        verified_call(problem, "torch", "forward", {})


def test_nan_is_a_disagreement():
    problem = make_problem(CASES["energy"], Size(24), torch.float64, CPU)
    with pytest.raises(Disagreement, match="NaN"):
        difference(problem, (torch.tensor([float("nan")]),), (torch.tensor([1.0]),))


def test_double_backward_is_the_derivative_of_the_squared_gradient():
    problem = make_problem(CASES["energy"], Size(8), torch.float64, CPU)
    call = make_call(problem, providers()["torch"].build(problem), "double_backward")
    where, what = problem.leaves()
    second = call()[3]
    step = 1e-4 * torch.eye(3, dtype=torch.float64)[0]
    sums = []
    for sign in (1, -1):
        moved = where.clone()
        moved[0] += sign * step
        first = make_call(problem, providers()["torch"].build(problem), "forward_backward", (moved, what))()[
            1:
        ]
        sums.append(sum(float((g**2).sum()) for g in first))
    assert (sums[0] - sums[1]) / 2e-4 == pytest.approx(float(second[0, 0]), rel=1e-5)


def test_the_polar_step_asks_for_two_spins_twice():
    problem = make_problem(CASES["polar"], Size(24), torch.float64, CPU)
    asked = []

    def features(spins):
        asked.append(spins.shape)
        return spins.new_zeros((24, 2, 8))

    systems = fields(problem, problem.positions)
    found = polar(problem, problem.rows, features, lambda rows: energy(systems, problem, rows))
    assert asked == [(24, 2, 4)] * 2
    assert torch.equal(found, energy(systems, problem, problem.rows))


def test_times_are_interleaved():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = interleaved(calls, CPU, seconds=10, most=3)
    assert order == ["a", "b"] * 4
    assert times["a"].repeats == 3


def test_quantiles():
    times = summarize([5e-3, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3])
    assert (times.median, times.p20, times.p80) == pytest.approx((3.5, 2.0, 5.0))


def test_rows_are_appended(tmp_path, monkeypatch):
    path = tmp_path / "here.csv"
    arguments = "run --quick --size 24 --mode forward --dtype float64 --no-memory --device cpu --provider"
    monkeypatch.setattr("sys.argv", [*arguments.split(), "scfmlip", "torch", "--out", str(path)])
    threads = torch.get_num_threads()
    run = Run(_arguments())
    run.case(CASES["energy"])
    torch.set_num_threads(threads)
    rows = read(path)
    assert [row["provider"] for row in rows] == ["scfmlip", "torch"]
    assert list(rows[0]) == COLUMNS
    assert rows[0]["atoms"] == "24"
    assert float(rows[1]["error"]) < 1e-12
    assert rows[0]["commit"]
    append(path, [Row(**{**rows[0], "peak_mib": None})])
    assert len(read(path)) == 3
    assert read(path)[2]["peak_mib"] == ""
