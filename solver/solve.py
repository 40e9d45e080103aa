"""`solve`: flatten, solve, check in integers, and say honestly what is proven."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from puzzle.solver.auto import auto
from puzzle.solver.diagnose import conflict
from puzzle.solver.milp import BACKENDS, Backend
from puzzle.solver.problem import Problem, ProblemError, Solution
from puzzle.solver.program import program_of
from puzzle.solver.verify import totals

ALL: dict[str, Backend] = {"auto": auto, **BACKENDS}


def solve(
    problem: Problem, backend: str = "auto", *, time_limit_s: float = 60.0, gap: float = 0.0
) -> Solution:
    """Pick one option per group with the least loss within every limit.

    `gap` is relative: the search may stop once (loss - bound) / |loss| is at most this. A reached
    time limit returns the best checked answer with its bound, or status `unknown`.
    """
    begin = time.perf_counter()
    if backend not in ALL:
        raise ProblemError(f"no backend {backend!r}; there are {', '.join(ALL)}")
    program = program_of(problem)
    answer = ALL[backend](program, time_limit_s=time_limit_s, gap=gap)
    if answer.columns is None:
        if answer.bound == math.inf:
            limits, message = conflict(program)
            return nothing("infeasible", message, begin, limits=limits, proof=answer.proof)
        message = f"no answer was found in {time_limit_s:g} s; allow more time"
        return nothing("unknown", message, begin)
    picks = program.picks(answer.columns)
    found = totals(problem, picks)
    assert not found.broken, f"{backend} broke {found.broken}"
    bound = min(answer.bound, found.loss)
    missing = (found.loss - bound) / max(abs(found.loss), 1e-300)
    proven = answer.proof != "none"
    return Solution(
        picks=picks,
        loss=found.loss,
        used=found.used,
        slack=found.slack,
        bound=bound,
        gap=missing,
        status="optimal" if proven else "feasible",
        proof=answer.proof,
        seconds=time.perf_counter() - begin,
    )


def nothing(
    status: str,
    message: str,
    begin: float,
    *,
    limits: dict[str, int] | None = None,
    proof: str = "none",
) -> Solution:
    """The solution without picks: `infeasible`, with the conflicting limits, or `unknown`."""
    return Solution(
        picks=None,
        loss=math.inf,
        used={},
        slack={},
        bound=math.inf if status == "infeasible" else -math.inf,
        gap=math.inf,
        status=status,
        proof=proof,
        seconds=time.perf_counter() - begin,
        conflict=limits or {},
        message=message,
    )


def solve_any(
    problems: Sequence[Problem],
    backend: str = "auto",
    *,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
) -> tuple[int, Solution]:
    """The best answer of several problems, such as one per batch size, and its index.

    The earliest index wins ties. Where no problem has an answer, that of the first is returned.
    """
    if not problems:
        raise ProblemError("solve_any needs at least one problem")
    solutions = [solve(each, backend, time_limit_s=time_limit_s, gap=gap) for each in problems]
    index = min(range(len(solutions)), key=lambda i: solutions[i].loss)
    return index, solutions[index]
