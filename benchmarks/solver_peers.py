"""One solver on one instance in a process of its own: `python solver_peers.py TASK.json`.

The task names the solver, the time limit, and a file with the instance's tables. Prints one JSON
object. CPU seconds are of this process and its children, from raw tables to picks: building the
model counts, imports and a first tiny solve do not. It imports nothing of ours for the peers,
because python-mip and OR-Tools cannot be loaded together.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tables = dict[str, Any]  # loss: [G][n], cost: {name: [G][n]}, limit: {name: int}
TINY: Tables = {"loss": [[0.0, 1.0]] * 2, "cost": {"a": [[8, 1]] * 2}, "limit": {"a": 10}}


def cpu_s() -> float:
    """CPU seconds of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def auto(tables: Tables, limit_s: float) -> Tables:
    """Puzzle's own solver."""
    from puzzle.solver import Problem, solve

    solution = solve(Problem(tables["loss"], tables["cost"], tables["limit"]), time_limit_s=limit_s)
    return {
        "picks": solution.picks,
        "finished": solution.status in ("optimal", "infeasible"),
        "bound": solution.bound,
        "proof": solution.proof,
    }


def pulp_cbc(tables: Tables, limit_s: float) -> Tables:
    """PuLP with its CBC, as puzzletron uses it; rows as shares of their limits."""
    import pulp

    model = pulp.LpProblem("peer", pulp.LpMinimize)
    x = [
        [pulp.LpVariable(f"x{g}_{i}", cat="Binary") for i in range(len(group))]
        for g, group in enumerate(tables["loss"])
    ]
    model += pulp.lpSum(v * loss for xs, row in zip(x, tables["loss"]) for v, loss in zip(xs, row))
    for group in x:
        model += pulp.lpSum(group) == 1
    for name, limit in tables["limit"].items():
        pairs = [
            (v, c / limit) for xs, row in zip(x, tables["cost"][name]) for v, c in zip(xs, row)
        ]
        model += pulp.LpAffineExpression(pairs) <= 1
    command = pulp.PULP_CBC_CMD(msg=False, timeLimit=limit_s, gapRel=0.0, gapAbs=0.0, threads=1)
    try:
        model.solve(command)
    except pulp.PulpSolverError:  # CBC was stopped by the limit on CPU time
        return {"picks": None, "finished": False, "bound": None}
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return {"picks": None, "finished": model.status == pulp.LpStatusInfeasible, "bound": None}
    picks = [max(range(len(xs)), key=lambda i, xs=xs: xs[i].value() or 0.0) for xs in x]
    return {
        "picks": picks,
        "finished": model.sol_status == pulp.LpSolutionOptimal,
        "bound": None,
    }


def python_mip(tables: Tables, limit_s: float) -> Tables:
    """python-mip with its CBC, as the Puzzle paper uses it; rows as shares of their limits."""
    import mip

    model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
    model.verbose, model.threads = 0, 1
    model.max_mip_gap = model.max_mip_gap_abs = 0.0
    x = [[model.add_var(var_type=mip.BINARY) for _ in group] for group in tables["loss"]]
    model.objective = mip.xsum(
        loss * v for xs, row in zip(x, tables["loss"]) for v, loss in zip(xs, row)
    )
    for group in x:
        model += mip.xsum(group) == 1
    for name, limit in tables["limit"].items():
        table = tables["cost"][name]
        model += mip.xsum(c / limit * v for xs, row in zip(x, table) for v, c in zip(xs, row)) <= 1
    status = model.optimize(max_seconds=limit_s)
    if not model.num_solutions:
        done = status in (mip.OptimizationStatus.INFEASIBLE, mip.OptimizationStatus.INT_INFEASIBLE)
        return {"picks": None, "finished": done, "bound": None}
    picks = [max(range(len(xs)), key=lambda i, xs=xs: xs[i].x) for xs in x]
    done = status == mip.OptimizationStatus.OPTIMAL
    return {"picks": picks, "finished": done, "bound": model.objective_bound}


def highs(tables: Tables, limit_s: float) -> Tables:
    """HiGHS through highspy, from arrays; rows as shares of what can be chosen."""
    return _backend("highs", tables, limit_s)


def cp_sat(tables: Tables, limit_s: float) -> Tables:
    """OR-Tools CP-SAT, one worker; rows as integers."""
    return _backend("cp-sat", tables, limit_s)


def _backend(name: str, tables: Tables, limit_s: float) -> Tables:
    from puzzle.solver import Problem
    from puzzle.solver.milp import BACKENDS
    from puzzle.solver.program import program_of

    program = program_of(Problem(tables["loss"], tables["cost"], tables["limit"]))
    answer = BACKENDS[name](program, time_limit_s=limit_s, gap=0.0)
    picks = None if answer.columns is None else program.picks(answer.columns)
    return {"picks": picks, "finished": answer.proof != "none", "bound": answer.bound}


SOLVERS: dict[str, Callable[[Tables, float], Tables]] = {
    "auto": auto,
    "pulp-cbc": pulp_cbc,
    "python-mip": python_mip,
    "highs": highs,
    "cp-sat": cp_sat,
}


def main(task: Tables) -> Tables:
    """Solve `task["repeats"]` times; the least CPU seconds and the peak memory of the process."""
    solver, spent = SOLVERS[task["solver"]], []
    solver(TINY, 10.0)
    tables = json.loads(Path(task["tables"]).read_text())
    if task["solver"] not in ("pulp-cbc", "python-mip"):
        import numpy as np

        tables["loss"] = [np.array(group) for group in tables["loss"]]
        tables["cost"] = {k: [np.array(g) for g in v] for k, v in tables["cost"].items()}
    if task["cpu_limit_s"]:
        limit = math.ceil(cpu_s() + task["cpu_limit_s"])
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    for _ in range(task["repeats"]):
        before = cpu_s()
        found = solver(tables, task["limit_s"])
        spent.append(cpu_s() - before)
        if spent[-1] > 1.0:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "cpu_s": sorted(spent)[len(spent) // 2], "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
