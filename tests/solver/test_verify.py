"""The independent check names every rule that an answer breaks."""

from __future__ import annotations

from puzzle.solver import Problem, Rules, Span, Unlike
from puzzle.solver.verify import totals

PROBLEM = Problem(
    [[0.25, 1.0], [0.5, 3.0], [0.0, 1.0]],
    {"bytes": [[2**53 + 1, 1], [8, 1], [8, 1]]},
    {"bytes": 2**53 + 17},
    {"bytes": 4},
    names=[["a", "b"]] * 3,
    rules=Rules(
        forbidden=((1, 1),),
        fixed=((0, 0),),
        spans=(Span(1, 3, 0.125, {"bytes": 5}),),
        unlike=(Unlike((0, 0, 0), 2),),
        max_names=1,
    ),
)


def test_totals_are_exact() -> None:
    found = totals(PROBLEM, (0, -1, -1))
    assert found.loss == 0.375
    assert found.used == {"bytes": 2**53 + 6}
    assert found.slack == {"bytes": 11, "bytes (at least)": 2**53 + 2}
    assert found.broken == ()


def test_what_is_broken_is_named() -> None:
    assert totals(PROBLEM, (0, 0, 0)).broken == ("3 picks equal earlier solution 0; 2 may",)
    broken = " ".join(totals(PROBLEM, (1, 1, 0)).broken)
    assert "group 1 holds the forbidden option 1" in broken
    assert "group 0 holds 1, not the fixed option 0" in broken
    assert "2 distinct names; 1 may be used" in broken
    over = totals(PROBLEM.with_limit(bytes=2**53 + 16), (0, 0, 0)).broken
    assert over[0] == "bytes exceeded by 1"
