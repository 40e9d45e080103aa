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


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        _ = puzzle.serch


KNOWN = """
import sys
def known():
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    return auto is not None and "nemotron-nas" in auto.CONFIG_MAPPING
"""


@pytest.mark.parametrize(
    "code",
    [
        "import puzzle\n"
        "from puzzle import PuzzleError, Architecture, load_config, Result, register\n"
        "assert not known()\n"
        "from puzzle import open_parent\n"
        "assert known()",
        "import puzzle; puzzle.register()\nassert known()",
        # the module first: its name still leads to the function
        "import puzzle.search, puzzle\n"
        "from puzzle.search import solve\n"
        "assert type(puzzle.search).__name__ == 'function'\n"
        "assert puzzle.solve is solve\n"
        "assert known()",
    ],
)
def test_model_types_are_known_once_a_name_that_touches_models_is_used(code: str) -> None:
    subprocess.run([sys.executable, "-c", KNOWN + code], check=True)
