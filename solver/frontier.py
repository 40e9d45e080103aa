"""`frontier`: the best loss for every value of one limit, from what is needed to what is of use."""

from __future__ import annotations

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from puzzle.solver.auto import bounded, finish
from puzzle.solver.diagnose import least
from puzzle.solver.presolve import undominated
from puzzle.solver.problem import Ints, Problem, ProblemError, Solution
from puzzle.solver.program import Program, program_of
from puzzle.solver.solve import report, solve

CHUNK = 5  # neighbouring points that share a start; fixed, so that answers are too


def frontier(
    problem: Problem,
    name: str,
    *,
    points: int = 50,
    time_limit_s: float = 60.0,
    processes: int = 1,
) -> list[tuple[int, Solution]]:
    """(limit, solution) for evenly spaced limits of cost `name`, the tightest first.

    The range runs from the least total the other limits allow to what the answer without this
    limit uses; beyond that nothing changes. A lower limit (`at_least` only) runs the other way
    round. The answers do not depend on `processes`; more than one are spawned, so a script needs
    the usual `if __name__ == "__main__"`. `time_limit_s` is for each point.
    """
    if points < 2:
        raise ProblemError(f"a frontier needs at least 2 points, not {points}")
    program, row = program_of(problem), _row(problem, name)
    limits = _limits(program, row, points)
    if not limits:
        return [(_shown(program, row, int(program.limit_R[row])), solve(problem))]
    program = program.keep(undominated(program))
    chunks = [limits[at : at + CHUNK] for at in range(0, len(limits), CHUNK)]
    tasks = [(problem, program, row, chunk, time_limit_s) for chunk in chunks]
    if processes == 1:
        found = [_chunk(*task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as executor:
            found = list(executor.map(_chunk, *zip(*tasks)))
    return [point for chunk in found for point in chunk]


def _row(problem: Problem, name: str) -> int:
    rows = [*problem.limit, *(f"{each} (at least)" for each in problem.at_least)]
    for row, each in enumerate(rows):
        if each.removesuffix(" (at least)") == name:
            return row
    raise ProblemError(f"no limit on {name!r}; there are {rows}")


def _limits(program: Program, row: int, points: int) -> list[int]:
    """Evenly spaced limits of the row; empty where the others leave no answer."""
    others = [other for other in range(len(program.rows)) if other != row]
    tightest = least(program, row, others)
    if tightest is None:
        return []
    without = replace(
        program,
        rows=tuple(program.rows[other] for other in others),
        cost_RN=program.cost_RN[others],
        limit_R=program.limit_R[others],
    )
    answer = finish(bounded(without), deadline=math.inf, gap=0.0)
    assert answer.columns is not None, "the others allow the tightest, so they allow something"
    loosest = max(tightest, int(program.cost_RN[row, answer.columns].sum()))
    steps = range(points)
    return sorted({tightest + (loosest - tightest) * step // (points - 1) for step in steps})


def _chunk(
    problem: Problem, program: Program, row: int, limits: list[int], time_limit_s: float
) -> list[tuple[int, Solution]]:
    """Solve neighbouring points, each relaxation starting from the columns of the one before."""
    found, useful_N = [], None
    for limit in limits:
        begin = time.perf_counter()
        limit_R: Ints = program.limit_R.copy()
        limit_R[row] = limit
        mine = replace(program, limit_R=limit_R)
        start = bounded(mine, useful_N)
        useful_N = start.useful_N
        answer = finish(start, deadline=begin + time_limit_s, gap=0.0)
        shown = _shown(program, row, limit)
        asked = _asked(problem, program.rows[row], shown)
        found.append((shown, report(asked, mine, answer, begin)))
    return found


def _asked(problem: Problem, row: str, limit: int) -> Problem:
    """The problem with this value for the row's limit."""
    if row.endswith(" (at least)"):
        name = row.removesuffix(" (at least)")
        return replace(problem, at_least={**problem.at_least, name: limit})
    return problem.with_limit(**{row: limit})


def _shown(program: Program, row: int, limit: int) -> int:
    """A row's limit as the problem states it: lower limits are rows of negated costs."""
    return -limit if program.rows[row].endswith(" (at least)") else limit
