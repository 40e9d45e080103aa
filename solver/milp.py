"""Ready-made solvers behind one small protocol: `BACKENDS[name](program, ...) -> Answer`.

A backend's answer is only a claim; `solve` checks it. CP-SAT takes the rows as exact integers; the
others compute in floating point and take every row as shares of its limit.

Legend: N columns, R rows, G groups, M names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program
from puzzle.solver.relax import quiet_highs, shares


@dataclass(frozen=True, eq=False)
class Answer:
    """A backend's claim: the columns picked (None: none found) and a lower bound on the loss.

    `bound` is infinite where the backend claims that nothing is feasible. `proof` is how it claims
    to know that nothing is better, `none` where it does not claim that.
    """

    columns: Ints | None
    bound: float
    proof: str


class Backend(Protocol):
    """Minimise the loss of a program; stop after `time_limit_s` or within the relative `gap`."""

    def __call__(self, program: Program, *, time_limit_s: float, gap: float) -> Answer:
        """Return the best columns found and the bound proven."""


def breaks(program: Program, columns_N: Ints) -> bool:
    """Whether these columns exceed a limit, cover a group not once, or use too many names."""
    covered_G = np.zeros(program.groups, dtype=np.int64)
    for start, stop in zip(program.start_N[columns_N], program.stop_N[columns_N]):
        covered_G[start:stop] += 1
    over_R = program.cost_RN[:, columns_N].sum(axis=1) > program.limit_R
    names = set(program.name_N[columns_N].tolist()) - {-1}
    many = program.max_names is not None and len(names) > program.max_names
    return bool((covered_G != 1).any() or over_R.any() or many)


def cp_sat(
    program: Program, *, time_limit_s: float, gap: float, hint_N: Ints | None = None
) -> Answer:
    """OR-Tools CP-SAT: rows as exact integers, the loss scaled to integers (error below 1e-12).

    `hint_N` are the columns of an answer to start from.
    """
    from ortools.sat.python import cp_model

    objective_N, scale, constant = integer_loss(program)
    model, x_N = _exact_model(program)
    model.minimize(cp_model.LinearExpr.weighted_sum(x_N, objective_N.tolist()))
    for column in () if hint_N is None else hint_N.tolist():
        model.add_hint(x_N[column], 1)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = max(0.01, min(time_limit_s, 1e6))
    solver.parameters.relative_gap_limit = gap
    status = solver.solve(model)
    proven = status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
    proof = "mip:cp-sat" if proven else "none"
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer(None, math.inf if proven else -math.inf, proof)
    columns = np.flatnonzero([solver.boolean_value(x) for x in x_N])
    # Rounding moved the total by half a unit per group at most; the bound gives that back.
    bound = (solver.best_objective_bound - program.groups / 2) / scale + constant
    return Answer(columns, bound, proof)


def integer_loss(program: Program) -> tuple[Ints, float, float]:
    """(objective_N, scale, constant) with loss_N about objective_N / scale plus the constant.

    Columns that cover several groups get their share of the constant for each.
    """
    length_N = program.stop_N - program.start_N
    shift = float((program.loss_N / length_N).min())
    shifted_N = np.maximum(program.loss_N - shift * length_N, 0.0)
    most = float(shifted_N.max()) * program.groups
    scale = 2.0 ** (48 - math.frexp(most)[1]) if most > 0 else 1.0
    return np.rint(shifted_N * scale).astype(np.int64), scale, shift * program.groups


def _exact_model(program: Program) -> tuple[Any, list[Any]]:
    """(CP-SAT model without an objective, its variables)."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x_N = [model.new_bool_var("") for _ in range(program.columns)]
    for covers in covering(program):
        model.add_exactly_one(x_N[column] for column in covers)
    for cost_N, limit in zip(program.cost_RN.tolist(), program.limit_R.tolist()):
        model.add(cp_model.LinearExpr.weighted_sum(x_N, cost_N) <= limit)
    if program.max_names is not None:
        used = [model.new_bool_var("") for _ in range(int(program.name_N.max(initial=0)) + 1)]
        for column in np.flatnonzero(program.name_N >= 0).tolist():
            model.add_implication(x_N[column], used[program.name_N[column]])
        model.add(sum(used) <= program.max_names)
    return model, x_N


def covering(program: Program) -> list[list[int]]:
    """For every group the columns that cover it."""
    groups: list[list[int]] = [[] for _ in range(program.groups)]
    for column, (start, stop) in enumerate(zip(program.start_N.tolist(), program.stop_N.tolist())):
        for group in range(start, stop):
            groups[group].append(column)
    return groups


@dataclass(frozen=True, eq=False)
class Rows:
    """The program as sparse rows `lower <= A x <= upper` over N columns and M name variables.

    Row i has the entries `first[i]` to `first[i + 1]` of `column` and `value`. The variables are
    binary; those of names cost nothing. Losses are in units of `unit`.
    """

    loss: Floats
    unit: float
    lower: Floats
    upper: Floats
    first: Ints
    column: Ints
    value: Floats


def sparse(program: Program) -> Rows:
    """Limits as shares of their room, groups covered once, names used at most so often."""
    share_RN, room_R, _ = shares(program)
    entries: list[tuple[Ints, Floats, float, float]] = []
    for row_N, room in zip(share_RN, room_R.tolist()):
        at = np.flatnonzero(row_N)
        entries.append((at, row_N[at], -math.inf, room))
    for columns in covering(program):
        entries.append((np.array(columns), np.ones(len(columns)), 1.0, 1.0))
    names = 0
    if program.max_names is not None:
        names = int(program.name_N.max(initial=-1)) + 1
        entries += _name_rows(program, names)
    unit = float(np.ptp(program.loss_N)) or 1.0
    sizes = [len(at) for at, _, _, _ in entries]
    return Rows(
        loss=np.append(program.loss_N, np.zeros(names)) / unit,
        unit=unit,
        lower=np.array([lower for _, _, lower, _ in entries]),
        upper=np.array([upper for _, _, _, upper in entries]),
        first=np.concatenate([[0], np.cumsum(sizes)]),
        column=np.concatenate([at for at, _, _, _ in entries]),
        value=np.concatenate([value for _, value, _, _ in entries]),
    )


def _name_rows(program: Program, names: int) -> list[tuple[Ints, Floats, float, float]]:
    """A group may hold a name that is used (one row per group and name); so many are used."""
    assert program.max_names is not None
    found: list[tuple[Ints, Floats, float, float]] = []
    key_N = program.start_N * names + program.name_N
    for key in np.unique(key_N[program.name_N >= 0]).tolist():
        at = np.flatnonzero((key_N == key) & (program.name_N >= 0))
        used = program.columns + key % names
        found.append((np.append(at, used), np.append(np.ones(len(at)), -1.0), -math.inf, 0.0))
    every = np.arange(program.columns, program.columns + names)
    found.append((every, np.ones(names), -math.inf, float(program.max_names)))
    return found


def highs(program: Program, *, time_limit_s: float, gap: float) -> Answer:
    """HiGHS' branch and bound."""
    import highspy

    rows, solver = sparse(program), quiet_highs()
    for option, value in {
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": 1e-9,
        "primal_feasibility_tolerance": 1e-9,
        "time_limit": max(0.01, min(time_limit_s, 1e6)),
    }.items():
        solver.setOptionValue(option, value)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(rows.loss), len(rows.lower)
    lp.col_cost_, lp.integrality_ = rows.loss, [highspy.HighsVarType.kInteger] * lp.num_col_
    lp.col_lower_, lp.col_upper_ = np.zeros(lp.num_col_), np.ones(lp.num_col_)
    lp.row_lower_, lp.row_upper_ = rows.lower, rows.upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = rows.first, rows.column
    lp.a_matrix_.value_ = rows.value
    solver.passModel(lp)
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Answer(None, math.inf, "mip:highs")
    bound = float(info.mip_dual_bound) * rows.unit
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Answer(None, bound, "none")
    columns = rounded(np.array(solver.getSolution().col_value)[: program.columns])
    proven = status == highspy.HighsModelStatus.kOptimal
    return Answer(columns, bound, "mip:highs" if proven else "none")


def scip(program: Program, *, time_limit_s: float, gap: float) -> Answer:
    """SCIP through OR-Tools MathOpt."""
    from ortools.math_opt.python import mathopt

    rows, model = sparse(program), mathopt.Model()
    x = [model.add_binary_variable() for _ in rows.loss]
    terms = zip(rows.loss.tolist(), x)
    model.minimize(mathopt.LinearSum(factor * each for factor, each in terms))
    for i, (lower, upper) in enumerate(zip(rows.lower.tolist(), rows.upper.tolist())):
        entries = slice(rows.first[i], rows.first[i + 1])
        total = mathopt.LinearSum(
            value * x[at]
            for at, value in zip(rows.column[entries].tolist(), rows.value[entries].tolist())
        )
        model.add_linear_constraint(lb=lower, ub=upper, expr=total)
    result = mathopt.solve(
        model,
        mathopt.SolverType.GSCIP,
        params=mathopt.SolveParameters(
            time_limit=timedelta(seconds=max(0.01, min(time_limit_s, 1e6))),
            relative_gap_tolerance=gap,
            absolute_gap_tolerance=0.0,
            threads=1,
        ),
    )
    reason = result.termination.reason
    if reason in (mathopt.TerminationReason.INFEASIBLE,):
        return Answer(None, math.inf, "mip:scip")
    bound = float(result.termination.objective_bounds.dual_bound) * rows.unit
    if not result.has_primal_feasible_solution():
        return Answer(None, bound, "none")
    values = result.variable_values()
    columns = rounded(np.array([values[each] for each in x[: program.columns]]))
    proven = reason == mathopt.TerminationReason.OPTIMAL
    return Answer(columns, bound, "mip:scip" if proven else "none")


def cbc(program: Program, *, time_limit_s: float, gap: float) -> Answer:
    """CBC through PuLP; it tells no bound unless it finishes."""
    import pulp

    rows = sparse(program)
    model = pulp.LpProblem("puzzle", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(len(rows.loss))]
    model += pulp.LpAffineExpression(list(zip(x, rows.loss.tolist())))
    for i, (lower, upper) in enumerate(zip(rows.lower.tolist(), rows.upper.tolist())):
        entries = slice(rows.first[i], rows.first[i + 1])
        at, value = rows.column[entries].tolist(), rows.value[entries].tolist()
        total = pulp.LpAffineExpression([(x[j], factor) for j, factor in zip(at, value)])
        sense = pulp.LpConstraintEQ if lower == upper else pulp.LpConstraintLE
        model += pulp.LpConstraint(total, sense, rhs=upper)
    command = pulp.PULP_CBC_CMD(
        msg=False,
        timeLimit=max(0.01, min(time_limit_s, 1e6)),
        gapRel=gap,
        gapAbs=0.0,
        threads=1,
        options=["primalTolerance 1e-9"],
    )
    model.solve(command)
    if model.status == pulp.LpStatusInfeasible:
        return Answer(None, math.inf, "mip:cbc")
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Answer(None, -math.inf, "none")
    columns = rounded(np.array([each.value() or 0.0 for each in x[: program.columns]]))
    if model.sol_status != pulp.LpSolutionOptimal:
        return Answer(columns, -math.inf, "none")
    loss = float(program.loss_N[columns].sum())
    return Answer(columns, loss - gap * abs(loss), "mip:cbc")


def rounded(values: Floats) -> Ints:
    """Columns whose value is nearer to one than to zero."""
    return np.flatnonzero(values > 0.5)


BACKENDS: dict[str, Backend] = {"cp-sat": cp_sat, "highs": highs, "scip": scip, "cbc": cbc}
