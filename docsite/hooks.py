"""
Hooks of mkdocs: pages that are made of code, rows and files elsewhere in the repository.

A comment on a line of its own is replaced: ``<!-- code: EXAMPLE CELL -->`` by a cell and what it prints,
``<!-- script: EXAMPLE -->`` by the whole file, ``<!-- picture: EXAMPLE FILE "what it shows" -->`` by a
picture that it drew, ``<!-- written: EXAMPLE FILE -->`` by a text that it wrote,
``<!-- options: module.Class -->`` by a table of options, ``<!-- benchmark: NAME -->`` by rows, and
``<!-- rules -->``, ``<!-- losses -->``, ``<!-- inputs -->``, ``<!-- commands -->``, ``<!-- messages -->``
by the reference of these. What cannot be replaced ends the build.
"""

from __future__ import annotations

import importlib
import logging
import posixpath
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from docsite import benchmarks, commands, configuration, examples, formulas, messages  # noqa: E402

log = logging.getLogger("mkdocs.hooks.docsite")
_MARK = re.compile(r"^<!-- (\w+)(?:: (.*?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# files of the repository that are pages, and where
_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_config(config: Any) -> Any:
    """Reports, and pages on other programs, take their place in the navigation once they are there."""
    docs = Path(config["docs_dir"])
    reports = [f"reports/{path.name}" for path in sorted((ROOT / "profiling" / "reports").glob("*.md"))]
    for entry in config["nav"]:
        for part in entry.get("Results", []):
            if "Reports" in part:
                part["Reports"] = reports
        if "How-to" in entry:
            for file, title in (("engines.md", "Other programs"), ("lammps.md", "LAMMPS")):
                if (docs / file).is_file() and {title: file} not in entry["How-to"]:
                    entry["How-to"].append({title: file})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds pictures of the study, reports, the change log, and what examples draw."""
    for source, target in _PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for path in sorted(p for kind in ("*.md", "*.svg") for p in (ROOT / "profiling" / "reports").glob(kind)):
        files.append(File.generated(config, f"reports/{path.name}", abs_src_path=str(path)))
    for path in sorted((ROOT / "bench" / "study" / "results").glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    for page in list(files.documentation_pages()):
        if page.abs_src_path is None:
            continue
        for kind, text in _MARK.findall(Path(page.abs_src_path).read_text()):
            if kind == "picture":
                name, file, _ = shlex.split(text)
                _, folder = examples.run_example(name)
                files.append(
                    File.generated(config, f"pictures/{name}/{file}", abs_src_path=str(folder / file))
                )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills in what the comments of a page ask for; links to other files of the repository become names."""
    return _LINK.sub(
        lambda m: _link(m, page.file.src_uri, files),
        _MARK.sub(lambda m: _fill(m, page.file.src_uri), markdown),
    )


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML; wide tables scroll by themselves."""
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return formulas.render(html)


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _fill(match: re.Match[str], page: str) -> str:
    kind, text = match[1], shlex.split(match[2] or "")
    if kind == "code":
        return examples.show_cell(*text)
    if kind == "script":
        script = examples.script_of(text[0])
        language = "bash" if script.suffix == ".sh" else "python"
        return f'```{language} title="examples/{script.name}"\n{script.read_text().rstrip()}\n```\n'
    if kind == "picture":
        name, file, about = text
        return f"![{about}]({_relative(f'pictures/{name}/{file}', page)})"
    if kind == "written":
        name, file = text
        content = (examples.run_example(name)[1] / file).read_text().rstrip()
        return f'```{Path(file).suffix[1:]} title="{file}"\n{content}\n```\n'
    if kind == "options":
        module, _, cls = text[0].rpartition(".")
        return configuration.table(getattr(importlib.import_module(module), cls))
    if kind == "benchmark":
        return benchmarks.TABLES[text[0]]()
    makers = {
        "rules": configuration.rule_tables,
        "losses": configuration.loss_table,
        "inputs": configuration.input_table,
        "commands": commands.reference,
        "messages": messages.reference,
    }
    if kind in makers:
        return makers[kind]()
    raise ValueError(f"{page}: there is no {kind!r} to put in")


def _link(match: re.Match[str], page: str, files: Files) -> str:
    """A link within the site as it is, a picture of the study where the site has it, else the file's name."""
    picture, text, target = match[1], match[2], match[3]
    if "://" in target or target.startswith(("#", "mailto:")):
        return match[0]
    path, _, anchor = target.partition("#")
    source = files.get_file_from_path(page)
    assert source is not None
    if files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page), path))):
        return match[0]
    # what the link means in the repository
    place = Path(source.abs_src_path or "").parent if source.abs_src_path else ROOT
    found = (place / path).resolve()
    if not found.exists() or not found.is_relative_to(ROOT):
        return match[0]  # mkdocs says that it is broken
    name = found.relative_to(ROOT).as_posix()
    if picture:
        return f"![{text}]({_relative(f'pictures/{found.name}', page)})"
    inside = {**_PAGES, **{f"docs/{f.src_uri}": f.src_uri for f in files.documentation_pages()}}
    if name in inside:
        return f"[{text}]({_relative(inside[name], page)}{'#' + anchor if anchor else ''})"
    return f"`{name}`" if text.strip("`") == name else f"{text} (`{name}`)"
