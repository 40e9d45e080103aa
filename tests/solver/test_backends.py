"""What every backend must satisfy, and that a backend that lies is caught."""

from __future__ import annotations

import math

import numpy as np
import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError, Rules, milp, solve
from puzzle.solver.exhaustive import best
from puzzle.solver.milp import Answer
from puzzle.solver.program import Program

BACKENDS = ("auto", *milp.BACKENDS)
PROBLEM = Problem(
    [[0.0, 1.0, 4.0], [0.0, 2.0, 3.0]],
    {"bytes": [[8, 4, 1], [9, 5, 1]]},
    {"bytes": 10},
    names=[["full", "half", "none"]] * 2,
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_problems_with_every_rule(backend: str) -> None:
    for seed in range(15):
        problem = random_problem(seed)
        loss, picks = best(problem)
        try:
            solution = solve(problem, backend)
        except ProblemError:
            assert picks is None
            continue
        assert solution.status == ("infeasible" if picks is None else "optimal"), seed
        assert solution.loss == pytest.approx(loss, abs=1e-9), seed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_budget_one_unit_too_small_is_not_exceeded(backend: str) -> None:
    scale = 10**11
    cost = [[8 * scale, 4 * scale, 1], [9 * scale, 5 * scale, 1]]
    exact = Problem([[0.0, 2.0, 9.0], [0.0, 1.0, 9.0]], {"bytes": cost}, {"bytes": 13 * scale})
    assert solve(exact, backend).picks == (0, 1)
    assert solve(exact.with_limit(bytes=13 * scale - 1), backend).picks == (1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_most_so_many_names(backend: str) -> None:
    few = Problem(
        PROBLEM.loss, PROBLEM.cost, {"bytes": 13}, names=PROBLEM.names, rules=Rules(max_names=1)
    )
    assert solve(few, backend).picks == (1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_feasible(backend: str) -> None:
    solution = solve(PROBLEM.with_limit(bytes=1), backend)
    assert solution.status == "infeasible"
    assert solution.conflict == {"bytes": 2}


def claims(columns: list[int] | None, bound: float) -> milp.Backend:
    """A backend that claims the same of every program."""

    def lie(program: Program, *, time_limit_s: float, gap: float) -> Answer:
        return Answer(None if columns is None else np.array(columns), bound, "mip:liar")

    return lie


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        (claims([0, 3], 0.0), "breaks a limit"),
        (claims([0], 0.0), "breaks a limit"),
        (claims([2, 5], 7.0), "missed a better answer"),
        (claims(None, math.inf), "claimed that nothing is feasible"),
    ],
)
def test_a_false_claim_is_caught_and_solved_again(
    monkeypatch: pytest.MonkeyPatch, lie: milp.Backend, fault: str
) -> None:
    monkeypatch.setitem(milp.BACKENDS, "liar", lie)
    solution = solve(PROBLEM, "liar")
    assert solution.loss == 3.0  # (0, 2) and (1, 1) tie
    assert solution.status == "optimal"
    assert fault in solution.message
