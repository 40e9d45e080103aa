"""`solve` and `solve_any`: flatten, solve, check in integers, and say honestly what is proven."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from puzzle.solver.auto import BEAM, Bounded, bounded, enumerated, finish
from puzzle.solver.diagnose import conflict
from puzzle.solver.milp import BACKENDS, Answer, breaks
from puzzle.solver.problem import Ints, Problem, ProblemError, Solution
from puzzle.solver.program import Program, program_of
from puzzle.solver.verify import totals


def solve(
    problem: Problem, backend: str = "auto", *, time_limit_s: float = 60.0, gap: float = 0.0
) -> Solution:
    """Pick one option per group with the least loss within every limit.

    `backend` is `auto`, `cp-sat`, `highs`, `scip` or `cbc`. `gap` is relative: the search may stop
    once (loss - bound) / |loss| is at most this. A reached time limit returns the best checked
    answer with its bound, or status `unknown`.

    The same call returns the same answer, unless a time limit cuts it short. Ties: going through
    the groups once, in order, each takes its earliest option of exactly the same loss that keeps
    every limit.
    """
    _known(backend)
    begin = time.perf_counter()
    program = program_of(problem)
    start = bounded(program)
    answer, note = _answer(backend, program, start, begin + time_limit_s, gap, math.inf)
    return report(problem, program, answer, begin, note=note)


def solve_any(
    problems: Sequence[Problem],
    backend: str = "auto",
    *,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
) -> tuple[int, Solution]:
    """The best answer of several problems, such as one per batch size, and its index.

    All are bounded, the most promising is solved first, and those whose bound cannot beat it are
    left. `bound`, `gap` and `status` are over all of them. The earliest index wins ties. Where no
    problem has an answer, the first that may still have one (status `unknown`) is returned, or else
    the first.
    """
    _known(backend)
    if not problems:
        raise ProblemError("solve_any needs at least one problem")
    begin = time.perf_counter()
    programs = [program_of(problem) for problem in problems]
    starts = _bounded_alike(programs)
    bounds = [start.bound for start in starts]
    answers: dict[int, tuple[Answer, str]] = {}
    best, best_loss = -1, math.inf
    for index in sorted(range(len(problems)), key=lambda i: (bounds[i], i)):
        # An earlier problem may tie, so its answers as good as the best are looked for too.
        cutoff = best_loss if index > best else best_loss + 1e-12 * abs(best_loss)
        if bounds[index] >= cutoff:
            continue
        deadline = begin + time_limit_s
        answer, note = _answer(backend, programs[index], starts[index], deadline, gap, cutoff)
        answers[index], bounds[index] = (answer, note), answer.bound
        if answer.columns is not None:
            picks = programs[index].picks(answer.columns)
            loss = totals(problems[index], picks).loss
            best_loss, best = min((loss, index), (best_loss, best))
    if best < 0:
        best = next((i for i, bound in enumerate(bounds) if bound < math.inf), 0)
    answer, note = answers.get(best, (Answer(None, math.inf, "lagrangian"), ""))
    if answer.columns is not None and min(bounds) < best_loss - max(gap, 1e-9) * abs(best_loss):
        answer = replace(answer, bound=min(bounds), proof="none")
    return best, report(problems[best], programs[best], answer, begin, note=note)


def report(
    problem: Problem, program: Program, answer: Answer, begin: float, *, note: str = ""
) -> Solution:
    """The checked solution of an answer; `begin` is when solving began (`time.perf_counter`)."""
    if answer.columns is None:
        infeasible = answer.bound == math.inf
        limits, message = conflict(program) if infeasible else ({}, "")
        return Solution(
            picks=None,
            loss=math.inf,
            used={},
            slack={},
            bound=answer.bound,
            gap=math.inf,
            status="infeasible" if infeasible else "unknown",
            proof=answer.proof if infeasible else "none",
            seconds=time.perf_counter() - begin,
            conflict=limits,
            message=message or "no answer was found in the time given; allow more",
        )
    picks = program.picks(earliest(program, answer.columns))
    found = totals(problem, picks)
    assert not found.broken, f"an answer that was checked broke {found.broken}"
    bound = min(answer.bound, found.loss)
    return Solution(
        picks=picks,
        loss=found.loss,
        used=found.used,
        slack=found.slack,
        bound=bound,
        gap=(found.loss - bound) / max(abs(found.loss), 1e-300),
        status="optimal" if answer.proof != "none" else "feasible",
        proof=answer.proof,
        seconds=time.perf_counter() - begin,
        message=note,
    )


def earliest(program: Program, columns_N: Ints) -> Ints:
    """Break ties: each group in order takes its earliest option of equal loss that fits."""
    chosen_G = np.full(program.groups, -1)
    options_N = columns_N[columns_N < program.options]
    chosen_G[program.start_N[options_N]] = options_N
    mine_N = chosen_G[program.start_N[: program.options]]
    equal_N = program.loss_N[: program.options] == program.loss_N[mine_N]
    ties = np.flatnonzero((mine_N >= 0) & equal_N & (np.arange(program.options) < mine_N))
    for column in ties.tolist():
        current = chosen_G[program.start_N[column]]
        if column < current:
            moved_N = np.sort(np.where(columns_N == current, column, columns_N))
            if not breaks(program, moved_N):
                columns_N, chosen_G[program.start_N[column]] = moved_N, column
    return columns_N


def _known(backend: str) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise ProblemError(f"no backend {backend!r}; there are auto, {', '.join(BACKENDS)}")


def _bounded_alike(programs: Sequence[Program]) -> list[Bounded]:
    """Bound every program, each from the columns that the one before needed."""
    starts: list[Bounded] = []
    for index, program in enumerate(programs):
        useful_N = None
        if starts and np.array_equal(program.start_N, programs[index - 1].start_N):
            useful_N = starts[-1].useful_N
        starts.append(bounded(program, useful_N))
    return starts


def _answer(
    backend: str, program: Program, start: Bounded, deadline: float, gap: float, cutoff: float
) -> tuple[Answer, str]:
    """(answer, what to say of it): a ready-made backend's claim only if it stands the audit."""
    if backend == "auto":
        return finish(start, deadline=deadline, gap=gap, cutoff=cutoff), ""
    seconds = deadline - time.perf_counter()
    claim = BACKENDS[backend](program, time_limit_s=seconds, gap=gap)
    fault = _fault(claim, program, start, gap)
    if not fault:
        return replace(claim, bound=max(claim.bound, start.bound)), ""
    answer = finish(start, deadline=max(deadline, time.perf_counter() + 1.0), gap=gap)
    return answer, f"{backend} {fault}; solved again by auto"


def _fault(claim: Answer, program: Program, start: Bounded, gap: float) -> str:
    """What is wrong with a backend's claim; empty where nothing is seen to be."""
    if claim.columns is not None and breaks(program, claim.columns):
        return "returned an answer that breaks a limit"
    if claim.proof == "none" or start.relaxation is None:
        return ""
    loss = math.inf if claim.columns is None else math.fsum(program.loss_N[claim.columns])
    allowed = max(gap, 1e-9) * abs(loss) if math.isfinite(loss) else 0.0
    better = enumerated(
        start.program,
        start.relaxation,
        deadline=math.inf,
        gap=0.0,
        cutoff=loss - allowed,
        largest=BEAM,
    )
    if better.columns is None or breaks(start.program, better.columns):
        return ""
    return "claimed that nothing is feasible" if loss == math.inf else "missed a better answer"
