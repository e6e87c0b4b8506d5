"""The pages: tables of the code, formulas, rows of benchmarks, messages, links; without building the site."""

import ast
import csv
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs scfmlip[docs]")
pytest.importorskip("latex2mathml", reason="needs scfmlip[docs]")

import yaml

from docsite import benchmarks, commands, configuration, examples, formulas, messages
from docsite.cells import split_cells
from scfmlip.cli import build_parser
from scfmlip.models import BackboneConfig, rule_names
from scfmlip.training import TERMS, TrainConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_MARK = re.compile(r"^<!-- (\w+)(?:: (.*?))? -->$", re.MULTILINE)


def name(path):
    return path.relative_to(ROOT).as_posix()


def nav():
    """Pages of the navigation."""

    class Loader(yaml.SafeLoader):
        pass

    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from pages(value) if isinstance(value, list) else [value]

    return list(pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]))


def test_options_are_those_of_the_dataclasses():
    for cls in (TrainConfig, BackboneConfig):
        table = configuration.table(cls)
        rows = [line for line in table.splitlines() if line.startswith("| `")]
        assert len(rows) == len(dataclasses.fields(cls))
    assert "| `r_max` | number | `5.0` | Cutoff, angstrom. |" in configuration.table(BackboneConfig)
    text = configuration.rule_tables()
    assert all(f"### `{rule}`" in text for rule in rule_names())
    assert all(f"| `{term}` |" in configuration.loss_table() for term in TERMS)


def test_an_option_without_a_word_ends_the_build():
    @dataclasses.dataclass
    class Silent:
        """Says nothing."""

        option: int = 1

    with pytest.raises(ValueError, match="says nothing of option"):
        configuration.table(Silent)


def test_every_command_is_there():
    text = commands.reference()
    choices = next(a for a in build_parser()._actions if a.dest == "command").choices
    for command, parser in choices.items():
        assert f"## scfmlip {command} " in text
        for action in parser._actions:
            if action.help not in (None, "==SUPPRESS==") and action.option_strings != ["-h", "--help"]:
                assert (action.option_strings or [action.dest])[-1] in text


def test_benchmarks_hold_every_row():
    with open(ROOT / "bench" / "results" / "models-amd-epyc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(benchmarks.models().splitlines()) == 2 + len(rows) // 2
    for table in benchmarks.TABLES.values():
        lines = table().splitlines()
        assert len(lines) > 2
        assert len({line.count(" | ") for line in lines}) == 1
    assert benchmarks.number("1234.5") == "1,234"
    assert benchmarks.number("4.67e-07", 1) == "5e-07"
    assert benchmarks.ratio("4.0", "2.0") == "**2x**"


def test_formulas():
    assert "<mfrac>" in formulas.to_mathml(r"\frac{1}{2}")
    assert "𝐫" in formulas.to_mathml(r"\mathbf r")
    page = '<p><span class="arithmatex">\\(a &lt; b\\)</span></p>'
    assert formulas.render(page).count("<math") == 1
    with pytest.raises(ValueError, match="does not know"):
        formulas.to_mathml(r"\nosuchcommand x")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_formulas_of_pages(page):
    text = re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    found = re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)
    for formula in found + re.findall(
        r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    ):
        formulas.to_mathml(formula)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_pages_show_exists(page):
    """Cells, scripts and tables that comments ask for, and files that links lead to."""
    for kind, text in _MARK.findall(page.read_text()):
        if kind == "code":
            example, cell = text.split()
            assert cell in split_cells(examples.script_of(example).read_text())
        elif kind in ("script", "picture", "written"):
            examples.script_of(text.split()[0])
        elif kind == "benchmark":
            assert text in benchmarks.TABLES
        else:
            assert kind in ("options", "rules", "losses", "inputs", "commands", "messages")
    made = ("changelog.md", "contributing.md", "reports/")
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" in target or any(part in target for part in made):
            continue
        assert (page.parent / target).exists(), target


def test_every_example_is_a_tutorial():
    """Each script is shown, every cell of it, on some page of the navigation."""
    shown = {}
    for page in nav():
        path = ROOT / "docs" / page
        if path.is_file():
            for kind, text in _MARK.findall(path.read_text()):
                if kind == "code":
                    example, cell = text.split()
                    shown.setdefault(example, []).append(cell)
    for example, cells in shown.items():
        code = split_cells(examples.script_of(example).read_text())
        assert [c for c in code if c not in ("", "picture")] == cells, example


def test_messages_are_those_of_the_code():
    """Each message on the page of troubles is a part of one that the code can say."""
    parts = []
    for path in [*(ROOT / "scfmlip").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts.append("".join(v.value for v in node.values if isinstance(v, ast.Constant)))
    text = "\n".join(parts)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 40
    assert not [message for message in messages if message not in text]


def test_every_message_is_listed(tmp_path):
    """A message of each form is found, and the page holds those of every part."""
    file = tmp_path / "code.py"
    file.write_text(
        "def f(x):\n"
        "    if x: raise ValueError(f'x must be positive, got {x}: change it')\n"
        "    raise TypeError('no such ' + 'thing here' if x else f'nothing at {x!r}')\n"
        "    raise KeyError(x)\n"
    )
    found = sorted(messages.raised(file))
    assert ("ValueError", "x must be positive, got …: change it") in found
    assert ("TypeError", "no such thing here / nothing at …") in found
    assert len(found) == 2
    listed = messages.find_messages()
    assert sum(map(len, listed.values())) > 500
    assert all(listed[part] for part in messages.PARTS if part != "Elsewhere")
    assert "which the model does not support" in messages.reference()


PACKAGES = (
    *("scfmlip", "scfmlip.electrostatics", "scfmlip.scf", "scfmlip.models", "scfmlip.training", "scfmlip.md"),
    *("scfmlip.mace_torch", "scfmlip.nn", "scfmlip.nn.cueq", "scfmlip.distributed", "scfmlip.ase"),
    *("scfmlip.interfaces.lammps", "scfmlip_kernels"),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    """By its docstring, or as the table of its options."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^(?:::: |<!-- options: )[\w.]*?(\w+)(?: -->)?$", text, re.MULTILINE))
    names = {name for name in importlib.import_module(package).__all__ if not name.startswith("__")}
    assert names <= shown, sorted(names - shown)


def test_cells():
    cells = split_cells('"""Doc."""\n\n# %% a\nx = 1\n\n# %% b\ny = 2\n')
    assert cells == {"": '"""Doc."""', "a": "x = 1", "b": "y = 2"}
    with pytest.raises(ValueError, match="same name"):
        split_cells("# %% a\n# %% a\n")
    with pytest.raises(FileNotFoundError, match="there is no example 'nothing'"):
        examples.script_of("nothing")
