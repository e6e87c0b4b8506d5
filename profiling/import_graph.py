"""
The import graph of scfmlip: which module needs which, the floors that follow, and circles.

    python -m profiling.import_graph          # floors of packages, arrows, circles
    python -m profiling.import_graph --modules

Imports inside functions count, those for type checkers do not.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "scfmlip"

Graph = Mapping[str, set[str]]


KERNELS = ROOT / "kernels"


def module_name(path: Path) -> str:
    """``scfmlip.models.build`` of a file; a package goes by its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports when it runs: modules, or names in them."""
    tree = ast.parse(path.read_text())
    package = list(path.parent.relative_to(KERNELS if KERNELS in path.parents else ROOT).parts)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_graph() -> dict[str, set[str]]:
    """What each module of the library imports of it; the top package, which gathers names, left out."""
    files = {
        module_name(p): p for p in sorted(LIBRARY.rglob("*.py")) if p.parent != LIBRARY or p.stem[0] != "_"
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        found = graph[module] = set()
        for name in imported_names(path):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                found.add(target)
    return graph


def package_graph(graph: Graph) -> dict[str, set[str]]:
    """The same of folders and single modules right below the library."""

    def top(module: str) -> str:
        return ".".join(module.split(".")[:2])

    packages: dict[str, set[str]] = {}
    for module, used in graph.items():
        packages.setdefault(top(module), set()).update(top(u) for u in used if top(u) != top(module))
    return packages


def find_circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def floors(graph: Graph) -> list[list[str]]:
    """What stands on the ground, what needs that only, and so on."""
    sorter, rows = graphlib.TopologicalSorter(graph), []
    sorter.prepare()
    while sorter.is_active():
        row = sorted(sorter.get_ready())
        rows.append(row)
        sorter.done(*row)
    return rows


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description="The import graph of scfmlip.")
    parser.add_argument("--modules", action="store_true", help="floors of modules, not of packages")
    modules = module_graph()
    graph = modules if parser.parse_args().modules else package_graph(modules)
    arrows = sum(map(len, modules.values()))
    print(f"{len(modules)} modules, {arrows} imports, circle: {find_circle(modules) or 'none'}")
    print(f"circle of packages: {find_circle(package_graph(modules)) or 'none'}")
    for number, row in enumerate([] if find_circle(graph) else floors(graph)):
        print(f"{number}: {', '.join(name.removeprefix('scfmlip.') for name in row)}")


if __name__ == "__main__":
    main()
