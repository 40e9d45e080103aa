"""The solver against CBC, HiGHS and CP-SAT: `python benchmarks/solver.py --mip-python PATH`.

PATH is the python of a virtual environment of its own with `pip install mip`; without it python-mip
is left out. Every solve runs in a process of its own (`solver_peers.py`). Rows are written as they
finish and are not measured again; delete `results/solver.json` to start over.

Limits in the grid are CPU seconds. A peer that reaches its limit is counted with that: its ratio is
a lower bound (`finished` false).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
from solver_families import instance

from puzzle.solver import Problem, ProblemError, frontier, solve, solve_any
from puzzle.solver.exhaustive import best
from puzzle.solver.verify import totals

Row = dict[str, Any]
HERE = Path(__file__).parent
WALL_S, PEER_S = 600.0, 10.0  # limits in the grid: wall clock of all, CPU of a peer
HARD_S = 10.0  # wall clock of all on the correlated kind
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
CBC = ("pulp-cbc", "python-mip")
SMALL = ("16x15", "36x8", "32x54", "80x54", "126x54", "80x(6+9)")
GRID = [
    *itertools.product(["realistic"], SMALL, [1, 2, 4, 8], [0.5, 0.85]),
    *itertools.product(["realistic"], ["500x200"], [1, 2], [0.5, 0.85]),
    *itertools.product(["noisy"], ["80x54", "126x54", "80x(6+9)"], [1, 2, 4], [0.5, 0.85]),
]  # kind, family, budgets, share
BATCHES = (8, 16, 24, 32, 48, 64, 96, 128, 192)
RANDOM = 2000
POINTS = 50


class Bench:
    """Rows measured so far, and how to measure one more."""

    def __init__(self, mip_python: str | None) -> None:
        path = record.RESULTS / "solver.json"
        self.rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
        self.mip_python = mip_python

    def row(self, measure: Callable[[], Row], **key: Any) -> Row:
        """The row of this key, measured now if it is new."""
        for row in self.rows:
            if key.items() <= row.items():
                return row
        self.rows.append({**key, **measure()})
        record.write("solver", summary(self.rows), self.rows)
        print(json.dumps({k: v for k, v in self.rows[-1].items() if k != "picks"}), flush=True)
        return self.rows[-1]

    def solvers(self) -> list[str]:
        """Ours first, then the peers at hand."""
        return ["auto", "pulp-cbc", *(["python-mip"] if self.mip_python else [])]

    def solved(
        self, solver: str, problem: Problem, limit_s: float, cpu_limit_s: float = PEER_S
    ) -> Row:
        """One solve in its own process, checked in integers; CBC peers have a limit on CPU time."""
        python = self.mip_python if solver == "python-mip" else sys.executable
        with tempfile.TemporaryDirectory() as folder:
            tables, task = Path(folder) / "tables.json", Path(folder) / "task.json"
            tables.write_text(problem.to_json())
            asked = {
                "solver": solver,
                "tables": str(tables),
                "limit_s": limit_s,
                "repeats": 3 if solver == "auto" else 1,
                "cpu_limit_s": cpu_limit_s if solver in CBC else None,
            }
            task.write_text(json.dumps(asked))
            run = subprocess.run(
                [str(python), str(HERE / "solver_peers.py"), str(task)],
                capture_output=True,
                text=True,
                check=False,
                env=ONE_CORE,
            )
        if run.returncode == -signal.SIGXCPU:
            return {"finished": False, "cpu_s": cpu_limit_s}
        if run.returncode:
            raise RuntimeError(f"{solver}: {run.stderr.strip()[-500:]}")
        found = json.loads(run.stdout.strip().splitlines()[-1])
        picks = found.pop("picks")
        if not math.isfinite(found["bound"] or 0.0):
            found["bound"] = None
        if picks is not None:
            checked = totals(problem, picks)
            found |= {"loss": checked.loss, "broken": list(checked.broken)}
        return found


def grid(bench: Bench) -> None:
    """Ours and both CBC peers over families, kinds, budgets and shares."""
    for kind, family, budgets, share in GRID:
        problem = instance(family, kind, budgets=budgets, share=share, seed=0)
        key = {"family": family, "kind": kind, "budgets": budgets, "share": share, "seed": 0}
        peer_s = PEER_S
        for solver in bench.solvers():
            row = bench.row(
                lambda s=solver, p=problem, t=peer_s: bench.solved(s, p, WALL_S, t),
                part="grid",
                **key,
                solver=solver,
            )
            # Time enough for a ratio of 4, so that no ratio below 3 is the limit's doing.
            peer_s = max(peer_s, math.ceil(4 * row["cpu_s"])) if solver == "auto" else peer_s


def million(bench: Bench) -> None:
    """1000 groups of 1000 options, 2 budgets: CPU seconds and peak memory of the process."""
    code = (
        "import json, resource, highspy, solver_families as f, solver_peers as p;"
        "q = f.instance('1000x1000', 'realistic', budgets=2, share=.5, seed=0);"
        "t = p.cpu_s(); r = p.auto({'loss': q.loss, 'cost': q.cost, 'limit': q.limit}, 60.0);"
        "r['cpu_s'] = p.cpu_s() - t; r.pop('picks');"
        "r['peak_bytes'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024;"
        "print(json.dumps(r))"
    )

    def measure() -> Row:
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
        )
        return json.loads(run.stdout)

    bench.row(measure, part="million", family="1000x1000", budgets=2, share=0.5, seed=0)


def batch_list(bench: Bench) -> None:
    """The best of nine batch sizes: ours at once, HiGHS one program after the other."""
    problems = [
        instance("80x54", "realistic", budgets=2, share=0.5, seed=0, batch=b) for b in BATCHES
    ]

    def ours() -> Row:
        solve_any(problems[:1])
        begin = time.process_time()
        again = [Problem(each.loss, each.cost, each.limit) for each in problems]
        index, solution = solve_any(again)
        spent = time.process_time() - begin
        return {"cpu_s": spent, "batch": BATCHES[index], "loss": solution.loss}

    bench.row(ours, part="batch list", solver="auto")
    for batch, problem in zip(BATCHES, problems):
        bench.row(
            lambda p=problem: bench.solved("highs", p, WALL_S),
            part="batch list",
            solver="highs",
            batch=batch,
        )


def frontiers(bench: Bench) -> None:
    """50 points of memory against loss; the peer solves every fifth."""
    problem = instance("80x54", "realistic", budgets=2, share=0.5, seed=0)

    def ours() -> Row:
        begin = time.process_time()
        points = frontier(problem, "memory0", points=POINTS)
        spent = time.process_time() - begin
        proven = sum(solution.status == "optimal" for _, solution in points)
        return {
            "cpu_s": spent,
            "points": len(points),
            "proven": proven,
            "limits": [limit for limit, _ in points],
        }

    limits = bench.row(ours, part="frontier", solver="auto")["limits"]
    for limit in limits[2::5]:
        bench.row(
            lambda at=limit: bench.solved("pulp-cbc", problem.with_limit(memory0=at), WALL_S),
            part="frontier",
            solver="pulp-cbc",
            limit=limit,
        )


def correlated(bench: Bench) -> None:
    """The gap each reaches in 10 s where losses follow costs."""
    for family in ("32x54", "80x54"):
        for budgets in (2, 4):
            problem = instance(family, "correlated", budgets=budgets, share=0.5, seed=0)
            for solver in ("auto", "highs", "cp-sat"):
                bench.row(
                    lambda s=solver, p=problem: bench.solved(s, p, HARD_S),
                    part="correlated",
                    family=family,
                    budgets=budgets,
                    solver=solver,
                )


def random_problems(bench: Bench) -> None:
    """2,000 small problems with every kind of rule against brute force."""
    sys.path.insert(0, str(HERE.parent / "tests" / "solver"))
    from random_problems import random_problem

    def measure() -> Row:
        wrong = []
        for seed in range(RANDOM):
            try:
                problem = random_problem(seed)
                solution = solve(problem)
            except ProblemError:
                continue
            loss, picks = best(problem)
            right = solution.status == ("infeasible" if picks is None else "optimal")
            if not right or (picks and not math.isclose(solution.loss, loss, abs_tol=1e-9)):
                wrong.append(seed)
        return {"problems": RANDOM, "wrong": len(wrong), "seeds": wrong}

    bench.row(measure, part="random")


def ratios(rows: list[Row], peer: str) -> list[tuple[float, Row]]:
    """(peer's CPU over ours, our row) over the instances both have solved."""
    key = ("family", "kind", "budgets", "share", "seed")
    mine = {
        tuple(row[k] for k in key): row
        for row in rows
        if row["part"] == "grid" and row["solver"] == "auto"
    }
    found = []
    for row in rows:
        ours = mine.get(tuple(row.get(k) for k in key))
        if ours and row["part"] == "grid" and row["solver"] == peer and "cpu_s" in row:
            found.append((row["cpu_s"] / ours["cpu_s"], {**ours, "peer_cpu_s": row["cpu_s"]}))
    return found


def wrong_answers(rows: list[Row]) -> int:
    """Our grid answers that break a limit, or are called optimal where a peer's is better."""
    key = ("family", "kind", "budgets", "share", "seed")
    least: dict[tuple[Any, ...], float] = {}
    mine = [row for row in rows if row["part"] == "grid" and row["solver"] == "auto"]
    for row in rows:
        if row["part"] == "grid" and "loss" in row and not row["broken"]:
            at = tuple(row[k] for k in key)
            least[at] = min(least.get(at, math.inf), row["loss"])
    wrong = 0
    for row in mine:
        reached = least.get(tuple(row[k] for k in key), math.inf)
        worse = row.get("loss", math.inf) > reached * (1 + 1e-9) + 1e-12
        wrong += bool(row.get("broken")) or (row["finished"] and worse)
    return wrong


def summary(rows: list[Row]) -> dict[str, Any]:
    """The figures of the README; a figure whose rows are not there yet is left out."""
    found: dict[str, Any] = {"wrong_answers": wrong_answers(rows)}
    both = {peer: ratios(rows, peer) for peer in CBC}
    for peer, name in (("pulp-cbc", "pulp_cbc"), ("python-mip", "python_mip")):
        realistic = [ratio for ratio, row in both[peer] if row["kind"] == "realistic"]
        if realistic:
            found[f"median_ratio_{name}"] = statistics.median(realistic)
    every = [each for pairs in both.values() for each in pairs]
    paper = [
        ratio
        for ratio, row in every
        if row["kind"] == "realistic"
        and row["family"] in ("80x54", "126x54")
        and row["budgets"] <= 2
    ]
    slow = [ratio for ratio, row in every if row["peer_cpu_s"] > 0.01]
    if paper:
        found |= {"paper_scale_ratio": statistics.median(paper), "min_ratio": min(slow)}
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    found |= _frontier(parts.get("frontier", [])) | _batch_list(parts.get("batch list", []))
    for row in parts.get("million", []):
        found |= {
            "million_columns_cpu_s": row["cpu_s"],
            "million_columns_peak_bytes": row["peak_bytes"],
        }
    for row in parts.get("random", []):
        found["random_problems"] = row["problems"]
        found["wrong_answers"] += row["wrong"]
    return found


def _frontier(rows: list[Row]) -> dict[str, float]:
    peer = [row["cpu_s"] for row in rows if row["solver"] == "pulp-cbc"]
    ours = [row["cpu_s"] / row["points"] for row in rows if row["solver"] == "auto"]
    return {"frontier_ratio": statistics.mean(peer) / ours[0]} if peer and ours else {}


def _batch_list(rows: list[Row]) -> dict[str, float]:
    peer = [row["cpu_s"] for row in rows if row["solver"] == "highs"]
    ours = [row["cpu_s"] for row in rows if row["solver"] == "auto"]
    return {"batch_list_ratio": sum(peer) / ours[0]} if len(peer) == len(BATCHES) and ours else {}


def main() -> None:
    """Measure every part, the short ones first."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--mip-python", help="python of an environment with python-mip")
    bench = Bench(arguments.parse_args().mip_python)
    for part in (million, batch_list, random_problems, frontiers, grid, correlated):
        part(bench)


if __name__ == "__main__":
    main()
