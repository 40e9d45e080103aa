"""The errors a user can meet; the command line prints their sentence and exits with their code."""

from __future__ import annotations


class PuzzleError(Exception):
    """Bad input or surroundings: one sentence with the numbers and the next step. Exit code 2."""

    exit_code = 2


class InfeasibleError(PuzzleError):
    """No child fits the budget; the sentence names the binding limit. Exit code 3."""

    exit_code = 3
