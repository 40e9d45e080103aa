"""Why nothing is feasible: a smallest set of limits that conflict, and what each could reach."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from puzzle.solver.auto import bounded, finish
from puzzle.solver.program import Program

SECONDS = 10.0  # for each of the questions below


def conflict(program: Program) -> tuple[dict[str, int], str]:
    """The limits of a smallest conflict with what each could reach given the others, in words.

    Limits are dropped one at a time while the rest stays infeasible, so no limit named can be
    left out. A limit that conflicts alone is named alone.
    """
    every = range(len(program.rows))
    alone = [row for row in every if not _reachable(program, [row])]
    rows = alone or _smallest_conflict(program)
    found: dict[str, int] = {}
    for row in rows:
        value = least(program, row, [] if alone else [other for other in rows if other != row])
        if value is not None:
            found[program.rows[row]] = abs(value)
    return found, _sentence(program, found, together=not alone)


def least(program: Program, row: int, others: list[int]) -> int | None:
    """The smallest total of a row while only the `others` hold; None where there is none."""
    relaxed = replace(
        program,
        rows=tuple(program.rows[other] for other in others),
        loss_N=program.cost_RN[row].astype(np.float64),
        cost_RN=program.cost_RN[others],
        limit_R=program.limit_R[others],
    )
    answer = finish(bounded(relaxed), deadline=time.perf_counter() + SECONDS, gap=0.0)
    return None if answer.columns is None else int(program.cost_RN[row, answer.columns].sum())


def _reachable(program: Program, rows: list[int]) -> bool:
    """Whether some answer satisfies these limits."""
    value = least(program, rows[0], rows[1:])
    return value is not None and value <= program.limit_R[rows[0]]


def _smallest_conflict(program: Program) -> list[int]:
    rows = list(range(len(program.rows)))
    for row in list(rows):
        rest = [other for other in rows if other != row]
        if rest and not _reachable(program, rest):
            rows = rest
    return rows


def _sentence(program: Program, found: dict[str, int], *, together: bool) -> str:
    if not found:
        return "the rules alone leave no answer, whatever the limits"
    limits = dict(zip(program.rows, program.limit_R.tolist()))
    parts = []
    for name, value in found.items():
        if name.endswith("(at least)"):
            asked = name.removesuffix(" (at least)")
            parts.append(f"{asked} must reach {-limits[name]} and reaches at most {value}")
        else:
            parts.append(f"{name} is limited to {limits[name]} and needs at least {value}")
    return "; ".join(parts) + (" while the others hold" if together and len(parts) > 1 else "")
