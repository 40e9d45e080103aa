"""Ready-made solvers behind one small protocol: `BACKENDS[name](program, ...) -> Answer`.

A backend's answer is only a claim; `solve` checks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program


@dataclass(frozen=True)
class Answer:
    """A backend's claim: the columns picked (None: none found) and a lower bound on the loss.

    `bound` is infinite where the backend claims that nothing is feasible.
    """

    columns: Ints | None
    bound: float


class Backend(Protocol):
    """Minimise the loss of a program; stop after `time_limit_s` or within the relative `gap`."""

    def __call__(self, program: Program, *, time_limit_s: float, gap: float) -> Answer:
        """Return the best columns found and the bound proven."""


def cp_sat(program: Program, *, time_limit_s: float, gap: float) -> Answer:
    """OR-Tools CP-SAT: rows as exact integers, the loss scaled to integers (error below 1e-12)."""
    objective_N, scale, constant = integer_loss(program)
    columns, bound, proven = minimize_exactly(program, objective_N, time_limit_s, gap=gap)
    if columns is None:
        return Answer(None, math.inf if proven else -math.inf)
    # Rounding moved the total by half a unit per group at most; the bound gives that back.
    return Answer(columns, (bound - (program.groups / 2 if not proven else 0)) / scale + constant)


def integer_loss(program: Program) -> tuple[Ints, float, float]:
    """(objective_N, scale, constant) with loss_N about objective_N / scale plus the constant.

    The constant is the sum over groups of the least loss, spread over spans by their length.
    """
    shift = float(program.loss_N.min())
    length_N = program.stop_N - program.start_N
    shifted_N = program.loss_N - shift * length_N
    shifted_N -= min(0.0, float((shifted_N / length_N).min())) * length_N
    shift += min(0.0, float(((program.loss_N - shift * length_N) / length_N).min()))
    most = float(shifted_N.max()) * program.groups
    scale = 2.0 ** (48 - math.frexp(most)[1]) if most > 0 else 1.0
    return np.rint(shifted_N * scale).astype(np.int64), scale, shift * program.groups


def minimize_exactly(
    program: Program, objective_N: Ints, time_limit_s: float, *, gap: float = 0.0
) -> tuple[Ints | None, float, bool]:
    """CP-SAT on an integer objective: (columns or None, bound, whether the search finished)."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x_N = [model.new_bool_var("") for _ in range(program.columns)]
    _add_rows(model, program, x_N)
    model.minimize(cp_model.LinearExpr.weighted_sum(x_N, objective_N.tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = max(0.01, min(time_limit_s, 1e6))
    solver.parameters.relative_gap_limit = gap
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, math.inf, True
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, -math.inf, False
    columns = np.flatnonzero([solver.boolean_value(x) for x in x_N])
    return columns, solver.best_objective_bound, status == cp_model.OPTIMAL


def _add_rows(model: Any, program: Program, x_N: list[Any]) -> None:
    from ortools.sat.python import cp_model

    for columns in covering(program):
        model.add_exactly_one(x_N[column] for column in columns)
    for cost_N, limit in zip(program.cost_RN.tolist(), program.limit_R.tolist()):
        model.add(cp_model.LinearExpr.weighted_sum(x_N, cost_N) <= limit)
    if program.max_names is not None:
        used = {name: model.new_bool_var("") for name in np.unique(program.name_N) if name >= 0}
        for column, name in enumerate(program.name_N.tolist()):
            if name >= 0:
                model.add_implication(x_N[column], used[name])
        model.add(sum(used.values()) <= program.max_names)


def covering(program: Program) -> list[list[int]]:
    """For every group the columns that cover it."""
    groups: list[list[int]] = [[] for _ in range(program.groups)]
    for column, (start, stop) in enumerate(zip(program.start_N.tolist(), program.stop_N.tolist())):
        for group in range(start, stop):
            groups[group].append(column)
    return groups


BACKENDS: dict[str, Backend] = {"cp-sat": cp_sat}


def rounded(values: Floats) -> Ints:
    """Columns whose value is nearer to one than to zero."""
    return np.flatnonzero(values > 0.5)
