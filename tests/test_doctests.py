"""The examples in docstrings run, collected by import name: paths cannot tell `puzzle.blocks`."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import puzzle
import puzzle.blocks
import puzzle.solver

COMMANDS = {"puzzle.__main__"}  # runs the command line when imported


def modules() -> Iterator[str]:
    for package in (puzzle, puzzle.blocks, puzzle.solver):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name not in COMMANDS:
                yield found.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_a_wrong_example_fails() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda _: None).failed == 1
