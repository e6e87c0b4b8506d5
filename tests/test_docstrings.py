"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import scfmlip
import scfmlip_kernels


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for package in (scfmlip, scfmlip_kernels):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            try:
                module = importlib.import_module(found.name)
            except ModuleNotFoundError:  # of an extra that is not installed
                continue
            yield from (test for test in finder.find(module) if test.examples)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("example", list(examples()), ids=lambda test: test.name)
def test_examples(example):
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)
