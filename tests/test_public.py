"""The public names: lazy, and functions even where a module has the same name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import puzzle


@pytest.mark.parametrize("name", puzzle.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(puzzle, name) is not None


def test_the_list_of_names_is_the_list_of_homes() -> None:
    assert sorted(puzzle.__all__) == sorted(puzzle._PUBLIC)


def test_importing_the_module_first_leaves_the_function() -> None:
    code = (
        "import puzzle.search, puzzle\n"
        "from puzzle.search import solve\n"
        "assert type(puzzle.search).__name__ == 'function'\n"
        "assert puzzle.solve is solve\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = puzzle.serch


@pytest.mark.parametrize(
    ("code", "known"),
    [
        ("import puzzle", False),
        ("from puzzle import PuzzleError, Architecture, load_config, Result", False),
        ("from puzzle import register", False),
        ("from puzzle import open_parent", True),
        ("import puzzle; puzzle.search", True),
        ("import puzzle; puzzle.register()", True),
    ],
)
def test_model_types_are_known_once_a_name_that_touches_models_is_used(
    code: str, known: bool
) -> None:
    asked = (
        f"{code}\nimport sys\n"
        "auto = 'transformers.models.auto.configuration_auto'\n"
        "known = auto in sys.modules and 'nemotron-nas' in sys.modules[auto].CONFIG_MAPPING\n"
        f"assert known == {known}"
    )
    subprocess.run([sys.executable, "-c", asked], check=True)
