"""The command line: `puzzle search`, and what looks at or goes on from its run directory.

A command is a function in one of the files beside this one. Modules that load torch are imported
inside the commands, so that help and errors are immediate.
"""

from __future__ import annotations

import sys

import typer

from puzzle.cli.engines import check, export
from puzzle.cli.hardware import budgets, doctor, estimate, profile
from puzzle.cli.run import search, show, solve, status
from puzzle.cli.steps import evaluate, heal, prune, sample
from puzzle.errors import PuzzleError

COMMANDS = (  # in the order of the help
    search, sample, prune, solve, heal, show, evaluate, status, budgets, estimate, profile, export,
    check, doctor,
)  # fmt: skip

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Derive a faster LLM for your hardware."
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run a command; an error a user can meet is one sentence and its exit code."""
    try:
        app()
    except PuzzleError as error:
        typer.echo(f"puzzle: {error}", err=True)
        sys.exit(error.exit_code)
