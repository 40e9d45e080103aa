"""`solve` against brute force, rule by rule and all at once."""

from __future__ import annotations

import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError, solve
from puzzle.solver.exhaustive import best


@pytest.mark.parametrize("seed", range(100))
def test_matches_brute_force(seed: int) -> None:
    try:
        problem = random_problem(seed)
        solution = solve(problem)
    except ProblemError as error:
        assert "forbidden" in str(error)
        return
    loss, picks = best(problem)
    if picks is None:
        assert solution.status == "infeasible"
    else:
        assert solution.status == "optimal"
        assert solution.loss == pytest.approx(loss, abs=1e-9)


def test_infeasible_names_the_limit_and_what_could_be_reached() -> None:
    problem = Problem([[1.0, 2.0]], {"bytes": [[9, 7]]}, {"bytes": 5})
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert solution.conflict == {"bytes": 7}
