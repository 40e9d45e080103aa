"""`solve` against brute force: every rule at once, ties, time limits, and what is proven."""

from __future__ import annotations

import math

import numpy as np
import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError, dynamic, solve
from puzzle.solver.exhaustive import best


def check(seed: int) -> None:
    """The solver's answer to a random problem is the best of all answers, or both find none."""
    problem = random_problem(seed)
    try:
        solution = solve(problem)
    except ProblemError as error:
        if "forbidden" not in str(error):
            raise
        assert best(problem)[1] is None
        return
    loss, picks = best(problem)
    if picks is None:
        assert solution.status == "infeasible", seed
        assert solution.message
        assert solution.proof != "none"
        return
    assert solution.status == "optimal", seed
    assert solution.loss == pytest.approx(loss, abs=1e-9), seed
    assert solution.bound == pytest.approx(loss, abs=1e-9), seed
    assert all(slack >= 0 for slack in solution.slack.values()), seed


@pytest.mark.parametrize("block", range(10))
def test_matches_brute_force(block: int) -> None:
    for seed in range(20 * block, 20 * (block + 1)):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_matches_brute_force_2000(block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        check(seed)


def test_multipliers_learned_from_every_state_exclude_no_best_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dynamic, "FEW", 1)
    monkeypatch.setattr(dynamic, "WORTH", 1)
    for seed in range(30):
        check(seed)


def layers(groups: int, options: int, rows: int, seed: int) -> Problem:
    """A problem too large to list, of continuous losses and costs measured group by group."""
    rng = np.random.default_rng(seed)
    cost = {f"c{r}": rng.integers(1, 10**9, (groups, options)) for r in range(rows)}
    loss = [np.sort(rng.exponential(1.0, options))[::-1] for _ in range(groups)]
    limit = {
        name: int(table.min(axis=1).sum() * 0.3 + table.sum() / options * 0.7)
        for name, table in cost.items()
    }
    return Problem(loss, {name: list(table) for name, table in cost.items()}, limit)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_cp_sat_where_brute_force_cannot_look(seed: int) -> None:
    problem = layers(groups=20, options=8, rows=1 + seed % 3, seed=seed)
    ours, theirs = solve(problem), solve(problem, "cp-sat")
    assert ours.status == theirs.status == "optimal"
    assert ours.proof in ("dp", "lagrangian", "mip:highs")
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)


def test_the_same_call_gives_the_same_answer() -> None:
    problem = layers(groups=30, options=10, rows=2, seed=7)
    assert solve(problem).picks == solve(problem).picks


def test_ties_go_to_the_earliest_option_that_fits() -> None:
    problem = Problem([[1.0, 1.0, 1.0], [0.0, 0.0]], {"bytes": [[9, 5, 4], [3, 2]]}, {"bytes": 8})
    assert solve(problem).picks == (1, 0)
    for backend in ("cp-sat", "highs", "scip", "cbc"):
        assert solve(problem, backend).picks == (1, 0)


def test_a_time_limit_returns_the_best_answer_with_its_bound() -> None:
    rng = np.random.default_rng(0)
    cost = {f"c{r}": list(rng.integers(10**6, 10**7, (30, 10))) for r in range(4)}
    # Losses that follow the costs: the hardest kind.
    loss = [-sum(table[g] for table in cost.values()) / 1e7 for g in range(30)]
    limit = {name: int(sum(group.mean() for group in table)) for name, table in cost.items()}
    solution = solve(Problem(loss, cost, limit), time_limit_s=3.0)
    assert solution.status == "feasible"
    assert solution.proof == "none"
    assert solution.bound < solution.loss
    assert 0 < solution.gap < 0.02
    assert min(solution.slack.values()) >= 0


def test_a_gap_allows_any_answer_that_near() -> None:
    problem = layers(groups=30, options=10, rows=3, seed=1)
    exact, near = solve(problem), solve(problem, gap=0.01)
    assert near.status == "optimal"
    assert near.gap <= 0.01
    assert near.bound <= exact.loss <= near.loss <= exact.loss * 1.0102


def test_no_time_at_all_says_that_none_was_found() -> None:
    solution = solve(layers(groups=30, options=10, rows=3, seed=1), time_limit_s=0.0)
    assert solution.status == "unknown"
    assert solution.picks is None
    assert "allow more" in solution.message


def test_one_limit_that_cannot_be_met_is_named_alone() -> None:
    problem = Problem([[1.0, 2.0]], {"bytes": [[9, 7]], "ns": [[1, 1]]}, {"bytes": 5, "ns": 9})
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert solution.conflict == {"bytes": 7}
    assert solution.message == "bytes is limited to 5 and needs at least 7"
    assert math.isinf(solution.loss)


def test_limits_that_exclude_each_other_are_named_with_what_each_could_reach() -> None:
    problem = Problem(
        [[0.0, 0.0], [0.0, 0.0]],
        {"a": [[1, 2], [3, 1]], "b": [[5, 1], [1, 7]], "c": [[1, 1], [1, 1]]},
        {"a": 3, "b": 5, "c": 2},
    )
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert solution.conflict == {"a": 5, "b": 8}


def test_a_lower_limit_out_of_reach_says_how_far_one_gets() -> None:
    problem = Problem([[0.0, 1.0]], {"tokens": [[3, 5]]}, {}, {"tokens": 8})
    assert solve(problem).message == "tokens must reach 8 and reaches at most 5"


def test_costs_near_the_end_of_int64_stay_exact() -> None:
    big = 2**60
    problem = Problem([[0.0, 1.0], [0.0, 1.0]], {"a": [[big, 1], [big, 2]]}, {"a": 2 * big - 1})
    solution = solve(problem)
    assert solution.picks in ((0, 1), (1, 0))
    assert solve(problem.with_limit(a=2 * big)).picks == (0, 0)
    assert solve(problem.with_limit(a=big + 1)).picks == (1, 0)


def test_without_limits_every_group_takes_its_best() -> None:
    assert solve(Problem([[3.0, 1.0], [-2.0, 0.0]], {}, {})).picks == (1, 0)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ProblemError, match=r"no backend 'gurobi'; there are auto, cp-sat"):
        solve(Problem([[0.0]], {}, {}), "gurobi")
