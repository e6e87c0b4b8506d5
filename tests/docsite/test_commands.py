"""Commands on the pages and in the README are such as the program takes; those of the README run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.io import read, write

from scfmlip.cli import build_parser, main
from scfmlip.data import path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))


def code(text):
    """Lines of code on a page: in blocks without a language, of shells, and in single backticks."""
    for language, block in re.findall(r"^```(\w*).*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "bash", "sh"):
            yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(file):
    """Complete commands of scfmlip: those with arguments, without comments and redirections."""
    text = file.read_text().replace("\\\n", " ")
    lines = code(text) if file.suffix == ".md" else text.splitlines()
    for line in lines:
        found = re.search(r"(?:^|-m |<\(|\d )scfmlip ([a-z]+ ?[^|>)]*)", line)
        if found and "..." not in line:
            yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("file", [*PAGES, *SCRIPTS], ids=lambda f: f.relative_to(ROOT).as_posix())
def test_commands_are_those_of_the_program(file):
    """A command alone must exist; one with arguments must be complete and have these options."""
    parser = build_parser()
    known = next(a for a in parser._actions if a.dest == "command").choices
    for words in commands(file):
        assert words[0] in known, words
        if len(words) > 1 and "--help" not in words and not words[1].startswith("--"):
            parser.parse_args(words)
        for option in (word for word in words[1:] if word.startswith("--")):
            assert option in known[words[0]]._option_string_actions, words


def test_it_finds_commands():
    found = list(commands(ROOT / "README.md"))
    assert ["init", "frames.xyz", "-o", "train.yaml"] in found
    assert ["train", "train.yaml", "--check"] in list(commands(ROOT / "docs" / "quickstart.md"))
    assert ["doctor"] in list(commands(ROOT / "examples" / "install.sh"))
    assert ["doctor"] in found
    assert len(found) >= 5


@pytest.mark.parametrize("file", PAGES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_targets_modules_and_extras_exist(file):
    """What pages tell to make, to run as a module and to install."""
    lines = list(code(file.read_text()))
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for module in re.findall(r"python3? -m ((?:bench|profiling|docsite|scfmlip)[\w.]*)", line):
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), line
        for extras in re.findall(r"(?:'\.|whl|scfmlip)\[([a-z,-]+)\]", line):
            project = (ROOT / "pyproject.toml").read_text()
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), line


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["demo", "test", "docs", "slow", "bench"])
def test_make_knows_what_to_do(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sys.version_info >= (3, 11)


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """The block of commands, line after line, on files of the names it has; the network is made small."""
    pytest.importorskip("mace", reason="needs mace-torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.chdir(tmp_path)
    still = read(path("al_water.xyz"), 0)
    frames = [still.copy() for _ in range(6)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=seed)
    write("frames.xyz", frames)
    write("test.xyz", frames[:2])
    write("start.xyz", still)
    run = {"structure": "start.xyz", "model": "training/best.safetensors", "steps": 2, "velocities": "zero"}
    Path("md.yaml").write_text(yaml.safe_dump(run))
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (block,) = [block for language, block in blocks if not language and "scfmlip init" in block]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[1] for words in lines] == ["init", "train", "evaluate", "md"]
    for words in lines:
        assert main(words[1:]) == 0, capsys.readouterr().err
        if words[1] == "init":
            options = yaml.safe_load(Path("train.yaml").read_text())
            small = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
            options["model"]["backbone"] |= small | {"r_max": 3.0}
            options["model"]["density"]["l_max"] = 0
            options["stages"] = [{**options["stages"][-1], "epochs": 1}]
            Path("train.yaml").write_text(yaml.safe_dump(options))
    for file in ("training/best.safetensors", "out.xyz", "parity.png", "md/trajectory.xyz"):
        assert Path(file).is_file()
