"""Brute force, the ground truth for small problems: every answer, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from puzzle.solver.problem import Problem
from puzzle.solver.verify import totals


def answers(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every way to cover the groups with options and spans, feasible or not."""
    yield from _extend(problem, ())


def _extend(problem: Problem, prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    group = len(prefix)
    if group == problem.groups:
        yield prefix
        return
    for option in range(len(problem.loss[group])):
        yield from _extend(problem, (*prefix, option))
    for index, span in enumerate(problem.rules.spans):
        if span.start == group:
            yield from _extend(problem, prefix + (~index,) * (span.stop - span.start))


def best(problem: Problem) -> tuple[float, tuple[int, ...] | None]:
    """The least loss and picks that reach it; (inf, None) where nothing is feasible."""
    loss, winner = math.inf, None
    for picks in answers(problem):
        found = totals(problem, picks)
        if not found.broken and found.loss < loss:
            loss, winner = found.loss, picks
    return loss, winner
