"""The other commands."""

import json

import pytest

from scfmlip.cli import build_parser, doctor, main
from scfmlip.cli.doctor import find_problems
from scfmlip.data import path


def test_doctor_reports(capsys):
    assert main(["doctor"]) in (0, 1)
    text = capsys.readouterr().out
    for word in ("torch", "triton", "structure_factor", "lattice_field", "gaussian_pairs", "CPU"):
        assert word in text


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"mace-torch": "0.3.16", "graph-longrange": "0.4.4"}, "force_pbc_evaluator"),
        ({"mace-torch": "0.3.16", "graph-longrange": "0.4.0"}, None),
        ({"mace-torch": "0.3.17"}, "refuses to accelerate"),
        (
            {"mace-torch": "0.3.15", "graph-longrange": "0.4.0"},
            "it has no PolarMACE. scfmlip.accelerate takes",
        ),
        ({"mace-torch": "0.3.14"}, "it has no PolarMACE"),
        ({"mace-torch": "0.3.13"}, "0.3.14 is the oldest"),
        ({"torch": "2.6.0+cpu"}, "needs 2.11 or newer"),
        ({"triton": "3.2.0"}, "need 3.6 or newer"),
        ({"cuequivariance": "0.13.0", "cuequivariance-torch": "0.12.1"}, "mismatched releases"),
        ({"e3nn": "0.4.4", "torch": "2.13.0"}, "unless mace is imported first"),
        ({"torch": "2.13.0+cpu", "triton": "3.9.0"}, None),
    ],
)
def test_doctor_knows_bad_combinations(versions, message):
    names = (
        "mace-torch",
        "graph-longrange",
        "torch",
        "triton",
        "cuequivariance",
        "cuequivariance-torch",
        "e3nn",
    )
    problems = find_problems({name: versions.get(name) for name in names})
    if message is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert message in problems[0]


@pytest.mark.parametrize(
    ("requirement", "installed", "problem"),
    [
        ('triton~=3.8.0; platform_system == "Linux" and python_version < "3.99"', "3.9.0", True),
        ("triton~=3.8.0", "3.8.1", False),
        ("triton==3.6.0; platform_system != 'Linux'", "3.9.0", False),
        ("triton (==3.6.0)", "3.9.0", True),
        ("triton==3.6.0", "3.6.0+git1234", False),
        ("triton>=3.6,<3.8", "3.8.0", True),
        ("pytorch-triton==3.6.0", "3.7.0", True),
        ("triton==3.6.0; extra == 'other'", "3.9.0", False),
        ("networkx>=2.5.1", "3.9.0", False),
        ("triton", "3.9.0", False),
    ],
)
def test_doctor_compares_triton_with_what_torch_requires(requirement, installed, problem, monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["filelock", requirement])
    monkeypatch.setattr(doctor, "version_of", lambda name: installed)
    lines = []
    found = doctor._triton_matches_torch(lines.append)
    assert bool(found) is problem
    if problem:
        name = requirement.split("triton")[0] + "triton"
        assert f"{name} {installed} with a torch that requires {name}" in found[0]
        assert f"pip install '{name}" in found[0]
        assert len(lines) == 1


def test_bench_checks_agreement_and_prints_a_row(capsys):
    assert main(["bench", "--atoms", "40", "--repeats", "1", "--dtype", "float64"]) == 0
    assert "40" in capsys.readouterr().out.splitlines()[-1]


def test_data_is_shipped():
    for name in ("al_water.xyz", "sio2_vacancy.xyz"):
        assert path(name).stat().st_size > 1000
    with pytest.raises(FileNotFoundError, match=r"it has \['al_water.xyz', 'models/al_water-equilibrated"):
        path("gold.xyz")


def test_every_command_has_help(capsys):
    for command in ("evaluate", "train", "convert", "plot", "bench", "demo", "doctor"):
        with pytest.raises(SystemExit):
            build_parser().parse_args([command, "--help"])
        assert len(capsys.readouterr().out) > 100


@pytest.mark.slow
def test_demo_writes_table_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("mace", reason="needs mace-torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # its workers are processes of their own
    assert main(["demo", "-o", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert len(table) == 3
    for row in table.values():
        assert row["energy_relative"] < 1e-5
        assert row["charges"] < 1e-4
        theirs, ours = row["field part, MiB"]
        assert ours < theirs
    assert len(list(tmp_path.glob("*.png"))) == 3
