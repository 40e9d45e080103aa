"""Several problems at once: batch lists, frontiers, and what a limit's move would change."""

from __future__ import annotations

import numpy as np
import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError, frontier, sensitivity, solve, solve_any
from puzzle.solver.program import program_of


def layers(limit: int, seed: int = 0) -> Problem:
    """Twelve layers of seven options under two limits."""
    rng = np.random.default_rng(seed)
    cost = {name: list(rng.integers(1, 10**6, (12, 7))) for name in ("bytes", "ns")}
    loss = [np.sort(rng.exponential(1.0, 7))[::-1] for _ in range(12)]
    return Problem(loss, cost, {"bytes": limit, "ns": 5 * 10**6})


def feasible_to_read(seed: int) -> bool:
    try:
        program_of(random_problem(seed))
    except ProblemError:
        return False
    return True


@pytest.mark.parametrize("backend", ["auto", "highs"])
@pytest.mark.parametrize("first", range(0, 40, 5))
def test_solve_any_is_the_best_of_each_solved_alone(first: int, backend: str) -> None:
    problems = [random_problem(s) for s in range(first, first + 5) if feasible_to_read(s)]
    alone = [solve(problem).loss for problem in problems]
    index, solution = solve_any(problems, backend)
    assert solution.loss == pytest.approx(min(alone), abs=1e-9)
    ties = [i for i, loss in enumerate(alone) if loss == pytest.approx(min(alone), abs=1e-12)]
    assert index == ties[0]


def test_solve_any_ties_go_to_the_earliest() -> None:
    problem = layers(4 * 10**6)
    assert solve_any([layers(3 * 10**6), problem, problem])[0] == 1


def test_solve_any_where_nothing_is_feasible() -> None:
    index, solution = solve_any([layers(1), layers(2)])
    assert index == 0
    assert solution.status == "infeasible"
    assert set(solution.conflict) == {"bytes"}


def test_solve_any_of_nothing() -> None:
    with pytest.raises(ProblemError, match="at least one problem"):
        solve_any([])


def test_frontier_points_are_the_optima_of_their_limits() -> None:
    problem = layers(4 * 10**6)
    points = frontier(problem, "bytes", points=12)
    assert len(points) == 12
    losses = [solution.loss for _, solution in points]
    assert losses == sorted(losses, reverse=True)
    for limit, solution in points:
        assert solution.status == "optimal"
        assert solution.slack["bytes"] == limit - solution.used["bytes"]
        assert solution.loss == pytest.approx(solve(problem.with_limit(bytes=limit)).loss)
    cheapest = sum(int(group.min()) for group in problem.cost["bytes"])
    assert points[0][0] >= cheapest
    assert losses[-1] == pytest.approx(solve(problem.with_limit(bytes=2**60)).loss)


def test_frontier_of_a_lower_limit() -> None:
    problem = Problem([[0.0, 1.0, 5.0]] * 4, {"saved": [[0, 5, 10]] * 4}, {}, {"saved": 10})
    points = dict(frontier(problem, "saved", points=3))
    assert {limit: solution.loss for limit, solution in points.items()} == {40: 20, 20: 4, 0: 0}


def test_frontier_does_not_depend_on_processes() -> None:
    problem = layers(4 * 10**6)
    alone, together = (frontier(problem, "ns", points=8, processes=n) for n in (1, 2))
    assert [(at, s.picks) for at, s in alone] == [(at, s.picks) for at, s in together]


def test_frontier_says_what_it_cannot_vary() -> None:
    with pytest.raises(ProblemError, match="no limit on 'tokens'"):
        frontier(layers(10**6), "tokens")


def test_prices_predict_what_a_little_more_saves() -> None:
    loss = [np.array([0.0, g + 1.0]) for g in range(5)]
    problem = Problem(loss, {"bytes": [[10, 0]] * 5}, {"bytes": 30})
    solution = solve(problem)
    found = sensitivity(problem, solution)
    assert solution.picks == (1, 1, 0, 0, 0)
    assert 0.2 <= found.price["bytes"] <= 0.3
    assert [each.group for each in found.tighter["bytes"]] == [2, 3, 4]
    assert [each.group for each in found.looser["bytes"]] == [1, 0]
    assert found.looser["bytes"][0].option == 0
    assert found.looser["bytes"][0].rate == pytest.approx(0.2)
    assert "bytes" in str(found)


def test_sensitivity_needs_picks() -> None:
    problem = layers(1)
    with pytest.raises(ProblemError, match="infeasible"):
        sensitivity(problem, solve(problem))
