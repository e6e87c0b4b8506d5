"""``scfmlip md``: what a user types and sees."""

import re

import pytest

pytest.importorskip("mace", reason="needs mace-torch")

from md.problems import options, share_models, write_yaml

from scfmlip.cli import main


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    share_models(monkeypatch)


def test_md(tmp_path, capsys):
    path = str(write_yaml(tmp_path, options(tmp_path, "qeq", steps=3)))
    assert main(["md", path, "--check"]) == 0
    fine, memory = capsys.readouterr().out.splitlines()
    assert "is fine" in fine
    assert re.fullmatch(r"a step takes about \d+ MiB of memory on cpu, [\d,]+ MiB are free", memory)
    assert not (tmp_path / "run").exists()
    assert main(["md", path]) == 0
    seen = capsys.readouterr()
    assert "3 steps, 1.5 fs" in seen.out
    assert "drift" in seen.out
    assert "of the shadow energy" in seen.out
    assert "holds trajectory.xyz, log.csv, md.png and restart.pt" in seen.out
    assert not seen.err  # no terminal, no bar: tests/test_progress.py
    assert main(["md", path, "--steps", "5", "--quiet"]) == 0
    assert "5 steps, 2.5 fs" in capsys.readouterr().out
    assert main(["md", path, "-o", str(tmp_path / "other"), "--quiet", "--fresh"]) == 0
    assert (tmp_path / "other" / "log.csv").exists()


def test_mistakes_take_one_line(tmp_path, capsys):
    path = str(write_yaml(tmp_path, options(tmp_path, "qeq", tempo=3)))
    assert main(["md", path]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("scfmlip md: the run has no option 'tempo'")
