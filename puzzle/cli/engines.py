"""Commands for the engines that serve a child."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puzzle.cli.options import ChildBudget, RunFolder
from puzzle.cli.tables import print_rows


def export(
    run: RunFolder,
    target: Annotated[str, typer.Option("--for", help="vllm, hf or llama.cpp.")] = "vllm",
    budget: ChildBudget = None,
    out: Annotated[Path | None, typer.Option(help="The folder, or GGUF file, to write.")] = None,
) -> None:
    """Write a run's child for an engine: a checkpoint folder, or a GGUF file for llama.cpp."""
    from puzzle.export.again import export as export_for

    typer.echo(export_for(run, target, budget=budget, out=out))


def check(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder that Puzzle wrote.")],
) -> None:
    """Load an exported folder in a clean process, and say which engines take it."""
    from puzzle.export.check import check as check_folder

    print_rows(("engine", ""), check_folder(folder))
