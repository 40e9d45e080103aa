"""Models that come with the package, as sizes without weights: parents and published children.

>>> shape, blocks = model("nemotron-super-49b")
>>> len(blocks), shape.model_params(blocks)
(80, 49867145216)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puzzle.architecture import Architecture
from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.shape import Shape
from puzzle.strict_yaml import did_you_mean

SHIPPED = Path(__file__).parent / "models"
EMBEDDED = Path(__file__).parents[1] / "data" / "parent"  # with its weights


def names() -> list[str]:
    """The models that `model` knows by name."""
    return sorted(path.stem for path in SHIPPED.iterdir() if path.suffix in {".json", ".txt"})


def model(name_or_path: str | Path) -> tuple[Shape, tuple[Block, ...]]:
    """A model's shape and the block of every layer, from its sizes alone.

    Args:
        name_or_path: a shipped name, `embedded`, a folder with a config.json, a config.json of any
            name, or an architecture text file, whose `parent:` is again any of these.

    Raises:
        PuzzleError: there is no such model, or the file does not read.
    """
    path = _find(str(name_or_path))
    if path.suffix == ".json":
        shape = Shape.from_config(_config(path))
        return shape, shape.blocks
    shape, _ = model(_parent_of(path))
    return shape, Architecture.parse(_text(path)).blocks


def config_of(name_or_path: str | Path) -> dict[str, Any]:
    """The config.json behind a model, its parent's for an architecture file."""
    path = _find(str(name_or_path))
    if path.suffix == ".json":
        return _config(path)
    return config_of(_parent_of(path))


def _parent_of(path: Path) -> str:
    """Where the parent of an architecture file is: beside it, or as it says."""
    parent = Architecture.parse(_text(path)).parent
    if not parent:
        raise PuzzleError(
            f"{path} names no parent; begin it with a line like parent: llama-3.1-70b"
        )
    beside = path.parent / parent
    return str(beside) if beside.exists() else parent


def _find(name: str) -> Path:
    path = EMBEDDED if name == "embedded" else Path(name)
    if (path / "config.json").is_file():
        return path / "config.json"
    if path.is_file():
        return path
    if name not in names():
        raise PuzzleError(
            f"model {name!r} is neither a file, nor a folder with a config.json, nor shipped; "
            f"{did_you_mean(name, names())}"
        )
    return next(SHIPPED.glob(f"{name}.*"))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise PuzzleError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(config, dict):
        raise PuzzleError(f"{path}: expected a config.json's fields, found {config!r}")
    return config


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PuzzleError(f"{path}: cannot be read ({error})") from None
