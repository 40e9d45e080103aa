"""Who may import whom (architecture.md); each rule is also shown a snippet that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import puzzle
import puzzle.blocks
import puzzle.solver

STAGES = {
    f"puzzle.{stage}"
    for stage in (
        "trace",
        "distill",
        "score",
        "choose",
        "trial",
        "assemble",
        "mend",
        "heal",
        "evaluate",
        "report",
    )
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by import name, wherever it is installed."""
    for package in (puzzle, puzzle.blocks, puzzle.solver):
        assert package.__file__
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).with_suffix("").parts
            yield ".".join([package.__name__, *inside]).removesuffix(".__init__"), path


def imports(module: str, source: str, is_package: bool = False) -> set[str]:
    """The full names a module imports anywhere in it; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level + is_package or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def within(name: str, *packages: str) -> bool:
    """Whether a name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def broken_rules(module: str, imported: set[str]) -> list[str]:
    """What a module imports against the rules, in words."""
    found = []
    for name in sorted(imported):
        if module in STAGES and within(name, *(STAGES - {module})):
            found.append(f"the stage {module} imports the stage {name}")
        if within(name, "puzzle.solver") and not within(
            module, "puzzle.solver", "puzzle.choose", "puzzle.cli"
        ):
            found.append(f"{module} imports {name}; only choose and the CLI may")
        if within(name, "torch.distributed") and module not in ("puzzle.ranks", "puzzle.shards"):
            found.append(f"{module} imports {name}; only ranks and shards may")
        if within(module, "puzzle.blocks", "puzzle.solver"):
            own = ".".join(module.split(".")[:2])
            if within(name, "puzzle", "blocks", "solver") and not within(name, own):
                found.append(f"{module} imports {name}; {own} knows nothing else of ours")
        if within(module, "puzzle.solver") and within(name, "torch", "transformers"):
            found.append(f"{module} imports {name}; the solver knows nothing of networks")
        if within(name, "pickle", "cPickle", "_pickle", "dill", "cloudpickle"):
            found.append(f"{module} imports {name}; nothing is unpickled")
    return found


def test_the_package_keeps_the_rules() -> None:
    broken = [
        sentence
        for module, path in modules()
        for sentence in broken_rules(
            module, imports(module, path.read_text(), path.name == "__init__.py")
        )
    ]
    assert not broken, "\n".join(broken)


def test_all_three_packages_are_read() -> None:
    names = {name for name, _ in modules()}
    assert names >= {"puzzle", "puzzle.trace", "puzzle.export.targets"}
    assert names >= {"puzzle.blocks.variant", "puzzle.solver.problem"}


@pytest.mark.parametrize(
    ("module", "snippet", "sentence"),
    [
        ("puzzle.score", "from puzzle.trace import trace", "the stage puzzle.score imports"),
        ("puzzle.score", "from puzzle import trace", "the stage puzzle.score imports"),
        ("puzzle.heal", "def f():\n    from .evaluate import kl", "the stage puzzle.heal imports"),
        ("puzzle.search", "from puzzle.solver import solve", "only choose and the CLI"),
        ("puzzle.export.targets", "from ..solver import solve", "only choose and the CLI"),
        ("puzzle.trace", "import torch.distributed as dist", "only ranks and shards"),
        ("puzzle.search", "from torch import distributed", "only ranks and shards"),
        ("puzzle.blocks.ffn", "from puzzle.errors import PuzzleError", "puzzle.blocks knows"),
        ("puzzle.blocks.ffn", "from ..errors import PuzzleError", "puzzle.blocks knows"),
        ("puzzle.blocks.ffn", "import puzzle", "puzzle.blocks knows"),
        ("puzzle.solver.solve", "from puzzle.blocks import variant", "puzzle.solver knows"),
        ("puzzle.solver.solve", "import torch", "knows nothing of networks"),
        ("puzzle.solver.solve", "from transformers import AutoConfig", "nothing of networks"),
        ("puzzle.run", "import pickle", "nothing is unpickled"),
    ],
)
def test_every_rule_can_fail(module: str, snippet: str, sentence: str) -> None:
    broken = broken_rules(module, imports(module, snippet))
    assert broken
    assert sentence in broken[0]


@pytest.mark.parametrize(
    ("module", "snippet"),
    [
        ("puzzle.choose", "from puzzle.solver import solve"),
        ("puzzle.cli", "from puzzle.solver import solve"),
        ("puzzle.shards", "from torch.distributed.fsdp import fully_shard"),
        ("puzzle.search", "from puzzle.trace import trace\nfrom puzzle.score import score"),
        ("puzzle.solver.solve", "from .problem import Problem\nimport numpy"),
        ("puzzle.blocks.ffn", "from .variant import FFN\nimport torch"),
    ],
)
def test_what_is_allowed_passes(module: str, snippet: str) -> None:
    assert not broken_rules(module, imports(module, snippet))


def test_relative_imports_are_resolved_in_modules_and_packages() -> None:
    assert imports("puzzle.a.b", "from ..c import d") == {"puzzle.c", "puzzle.c.d"}
    assert imports("puzzle.a.b", "from . import c") == {"puzzle.a", "puzzle.a.c"}
    assert imports("puzzle.a", "from .b import c", True) == {"puzzle.a.b", "puzzle.a.b.c"}


@pytest.mark.parametrize("name", ["puzzle", "puzzle.solver", "puzzle.blocks.variant"])
def test_importing_loads_no_torch(name: str) -> None:
    code = f"import {name}, sys; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
