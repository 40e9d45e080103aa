"""Side constraints one by one, where the answer can be seen."""

from __future__ import annotations

import numpy as np

from puzzle.solver import Problem, Rules, Span, solve


def layers(rules: Rules, limit: int = 30) -> Problem:
    """Four layers, each full (10 bytes), half (5) or nothing."""
    return Problem(
        [[0.0, 1.0, 5.0]] * 4,
        {"bytes": [[10, 5, 0]] * 4},
        {"bytes": limit},
        names=[["full", "half", "none"]] * 4,
        rules=rules,
    )


def test_fixed_and_forbidden() -> None:
    assert solve(layers(Rules(fixed=((2, 2),)))).picks == (0, 0, 2, 0)
    picks = solve(layers(Rules(forbidden=((0, 1), (1, 1))))).picks
    assert picks is not None
    assert sorted(picks) == [0, 0, 1, 1]
    assert picks[:2] == (0, 0)


def test_a_span_replaces_several_groups() -> None:
    span = Span(1, 3, 0.5, {"bytes": 4}, name="fused")
    solution = solve(layers(Rules(spans=(span,))))
    assert solution.picks == (0, -1, -1, 0)
    assert solution.used == {"bytes": 24}
    assert "fused" in solution.table(layers(Rules(spans=(span,))))


def test_names_are_limited_over_the_whole_answer() -> None:
    assert set(solve(layers(Rules(max_names=1))).picks or ()) == {1}
    assert len(set(solve(layers(Rules(max_names=2))).picks or ())) == 2


def test_diverse_answers_get_worse_and_differ() -> None:
    rng = np.random.default_rng(0)
    problem = Problem(
        list(rng.random((10, 6))), {"bytes": list(rng.integers(1, 99, (10, 6)))}, {"bytes": 400}
    )
    found = []
    for _ in range(4):
        solution = solve(problem)
        assert solution.status == "optimal"
        assert solution.picks is not None
        found.append(solution)
        problem = problem.unlike(solution.picks, alpha=0.6)
    losses = [solution.loss for solution in found]
    assert losses == sorted(losses)
    for a in range(4):
        for b in range(a):
            assert sum(x == y for x, y in zip(found[a].picks, found[b].picks)) <= 6


def test_lower_limits() -> None:
    problem = Problem(
        [[0.0, 1.0, 5.0]] * 4,
        {"bytes": [[10, 5, 0]] * 4, "saved": [[0, 5, 10]] * 4},
        {},
        {"saved": 10},
    )
    solution = solve(problem)
    assert solution.loss == 2.0
    assert solution.slack == {"saved (at least)": 0}
