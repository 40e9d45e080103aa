"""Commands that make a run directory, choose from it again, or print what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from puzzle.cli.options import (
    BudgetSource,
    ChildBudget,
    ConfigFile,
    DataSource,
    OutFolder,
    RunFolder,
    Settings,
)
from puzzle.cli.tables import print_result
from puzzle.errors import PuzzleError


def search(
    model: Annotated[str | None, typer.Option(help="A checkpoint folder or hub id.")] = None,
    teacher: Annotated[str | None, typer.Option(help="What heals it, if not MODEL.")] = None,
    data: DataSource = None,
    budget: BudgetSource = None,
    out: OutFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Derive a child: trace, distill, score, choose, heal, evaluate, export, report.

    With no option at all, on the embedded parent and corpus.
    """
    from puzzle import search as search_for
    from puzzle.ranks import here

    said = [f"teacher={json.dumps(teacher)}"] if teacher else []
    result = search_for(
        model, data=data, budget=budget, out=out, config=config, settings=[*said, *(settings or ())]
    )
    if here().leads:
        print_result(result)


def solve(
    run: Annotated[Path | None, typer.Argument(help="A run directory with scores.")] = None,
    budget: BudgetSource = None,
    problem: Annotated[Path | None, typer.Option(help="A problem of your own, as JSON.")] = None,
) -> None:
    """Choose again: a new budget on an old run, or a problem of your own."""
    if problem:
        _solve_problem(problem)
    elif run and budget:
        from puzzle import solve as solve_for

        print_result(solve_for(run, budget))
    else:
        raise PuzzleError("give a run directory and --budget, or --problem FILE")


def _solve_problem(path: Path) -> None:
    from puzzle.solver import Problem, ProblemError
    from puzzle.solver import solve as solve_problem

    try:
        problem = Problem.from_json(path.read_text())
        solution = solve_problem(problem)
    except OSError as error:
        raise PuzzleError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PuzzleError(f"{path} is not UTF-8 text; a problem is a JSON file") from None
    except ProblemError as error:
        raise PuzzleError(f"{path}: {error}") from None
    typer.echo(solution)
    if solution.picks is None:
        raise typer.Exit(3)
    typer.echo(solution.table(problem))


def show(run: RunFolder, budget: ChildBudget = None) -> None:
    """Print the architecture and the table of a run's child."""
    from puzzle import open_result

    print_result(open_result(run, budget))


def status(run: RunFolder) -> None:
    """Print how far a run has come, and how long its stages took."""
    from puzzle.status import status_table

    Console().print(status_table(run))
