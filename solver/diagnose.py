"""Why nothing is feasible: a smallest set of limits that conflict, and what each could reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from puzzle.solver.milp import minimize_exactly
from puzzle.solver.problem import Ints
from puzzle.solver.program import Program

SECONDS = 10.0  # for each of the small feasibility questions


def conflict(program: Program) -> tuple[dict[str, int], str]:
    """The limits of a smallest conflict with what each could reach given the others, in words.

    Limits are dropped one at a time while the rest stays infeasible, so no limit named can be
    left out. A limit that conflicts alone is named alone.
    """
    reach_R = [least(program, row, []) for row in range(len(program.rows))]
    alone = [r for r, value in enumerate(reach_R) if value is None or value > program.limit_R[r]]
    rows = alone if alone else _smallest_conflict(program)
    found: dict[str, int] = {}
    for row in rows:
        others = [] if alone else [other for other in rows if other != row]
        value = least(program, row, others)
        if value is not None:
            found[program.rows[row]] = abs(value)
    return found, _sentence(program, found, together=not alone)


def least(program: Program, row: int, others: list[int]) -> int | None:
    """The smallest total of a row while only the `others` hold; None where there is none."""
    relaxed = _with_rows(program, others)
    columns, _, _ = minimize_exactly(relaxed, program.cost_RN[row], SECONDS)
    return None if columns is None else int(program.cost_RN[row, columns].sum())


def _with_rows(program: Program, rows: list[int]) -> Program:
    return replace(
        program,
        rows=tuple(program.rows[row] for row in rows),
        cost_RN=program.cost_RN[rows],
        limit_R=program.limit_R[rows],
    )


def _smallest_conflict(program: Program) -> list[int]:
    rows = list(range(len(program.rows)))
    nothing_N: Ints = np.zeros(program.columns, dtype=np.int64)
    for row in list(rows):
        rest = [other for other in rows if other != row]
        columns, _, finished = minimize_exactly(_with_rows(program, rest), nothing_N, SECONDS)
        if columns is None and finished:
            rows = rest
    return rows


def _sentence(program: Program, found: dict[str, int], *, together: bool) -> str:
    if not found:
        return "the rules alone leave no answer, whatever the limits"
    limits = dict(zip(program.rows, program.limit_R.tolist()))
    parts = []
    for name, value in found.items():
        word = "at most" if limits[name] < 0 or name.endswith("(at least)") else "at least"
        parts.append(f"{name} is limited to {abs(limits[name])} and needs {word} {value}")
        if word == "at most":
            parts[-1] = f"{name} asks for {abs(limits[name])} and at most {value} can be reached"
    return ("; ".join(parts)) + (" while the others hold" if together else "")
