"""Puzzle: derive a faster language model from a pretrained one, for the hardware you have.

    import puzzle
    result = puzzle.search(budget="h100-1gpu")

Names are loaded when first used: `import puzzle` alone loads no torch. The first that touches
models also lets transformers know our model types, as `puzzle.register()` does.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puzzle.architecture import Architecture
    from puzzle.blocks.own import OwnVariant
    from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, MoE, NoOp
    from puzzle.budget import Budget, load_budget
    from puzzle.compare import evaluate
    from puzzle.comparison import Comparison
    from puzzle.config import Config, load_config
    from puzzle.errors import InfeasibleError, PuzzleError
    from puzzle.export.register import register
    from puzzle.own import add_variant
    from puzzle.parent import Parent, open_parent
    from puzzle.result import Result, open_result
    from puzzle.search import search, solve

__all__ = [
    "FFN",
    "GQA",
    "Architecture",
    "Block",
    "Budget",
    "Comparison",
    "Config",
    "InfeasibleError",
    "LinearMap",
    "MoE",
    "NoOp",
    "OwnVariant",
    "Parent",
    "PuzzleError",
    "Result",
    "add_variant",
    "evaluate",
    "load_budget",
    "load_config",
    "open_parent",
    "open_result",
    "register",
    "search",
    "solve",
]

# public name -> the module that holds it
_PUBLIC = {
    "search": "puzzle.search",
    "solve": "puzzle.search",
    "evaluate": "puzzle.compare",
    "Comparison": "puzzle.comparison",
    "Result": "puzzle.result",
    "open_result": "puzzle.result",
    "Architecture": "puzzle.architecture",
    "Block": "puzzle.blocks.variant",
    "GQA": "puzzle.blocks.variant",
    "FFN": "puzzle.blocks.variant",
    "MoE": "puzzle.blocks.variant",
    "LinearMap": "puzzle.blocks.variant",
    "NoOp": "puzzle.blocks.variant",
    "OwnVariant": "puzzle.blocks.own",
    "add_variant": "puzzle.own",
    "Budget": "puzzle.budget",
    "load_budget": "puzzle.budget",
    "Config": "puzzle.config",
    "load_config": "puzzle.config",
    "Parent": "puzzle.parent",
    "open_parent": "puzzle.parent",
    "register": "puzzle.export.register",
    "PuzzleError": "puzzle.errors",
    "InfeasibleError": "puzzle.errors",
}

_OF_MODELS = {"search", "solve", "Parent", "open_parent", "add_variant"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'puzzle' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    if name in _OF_MODELS:
        importlib.import_module("puzzle.export.register").register()
    return value


class _Package(ModuleType):
    """Keeps `puzzle.search` the function when its module is imported under the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return __all__
