"""The independent check of an answer, from the problem's own tables in exact integers.

It shares nothing with the solver: it reads `Problem`, not `Program`, and adds Python integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puzzle.solver.problem import Problem, Span


@dataclass(frozen=True)
class Totals:
    """What an answer adds up to, and every rule it breaks (none, if it is right)."""

    loss: float
    used: dict[str, int]
    slack: dict[str, int]
    broken: tuple[str, ...]


def totals(problem: Problem, picks: Sequence[int]) -> Totals:
    """Add up `picks` and list the limits and rules they break."""
    chosen = list(_chosen(problem, picks))
    losses = [
        item.loss if isinstance(item, Span) else float(problem.loss[item[0]][item[1]])
        for item in chosen
    ]
    used = {
        name: sum(
            int(item.cost[name] if isinstance(item, Span) else table[item[0]][item[1]])
            for item in chosen
        )
        for name, table in problem.cost.items()
    }
    slack = {name: limit - used[name] for name, limit in problem.limit.items()}
    for name, least in problem.at_least.items():
        slack[f"{name} (at least)"] = used[name] - least
    broken = [f"{name} exceeded by {-left}" for name, left in slack.items() if left < 0]
    broken += _broken_rules(problem, picks, chosen)
    return Totals(math.fsum(losses), used, slack, tuple(broken))


def _chosen(problem: Problem, picks: Sequence[int]) -> Iterator[tuple[int, int] | Span]:
    assert len(picks) == problem.groups, f"{len(picks)} picks for {problem.groups} groups"
    group = 0
    while group < problem.groups:
        pick = picks[group]
        if pick >= 0:
            assert pick < len(problem.loss[group]), f"group {group} has no option {pick}"
            yield group, pick
            group += 1
            continue
        span = problem.rules.spans[~pick]
        covered = picks[span.start : span.stop]
        assert span.start == group, f"span {~pick} starts at {span.start}, not at {group}"
        assert all(each == pick for each in covered), f"span {~pick} is torn: {covered}"
        yield span
        group = span.stop


def _broken_rules(
    problem: Problem, picks: Sequence[int], chosen: Sequence[tuple[int, int] | Span]
) -> Iterator[str]:
    rules = problem.rules
    for group, option in rules.forbidden:
        if picks[group] == option:
            yield f"group {group} holds the forbidden option {option}"
    for group, option in rules.fixed:
        if picks[group] != option:
            yield f"group {group} holds {picks[group]}, not the fixed option {option}"
    for index, earlier in enumerate(rules.unlike):
        equal = sum(mine == theirs for mine, theirs in zip(picks, earlier.picks))
        if equal > earlier.at_most:
            yield f"{equal} picks equal earlier solution {index}; {earlier.at_most} may"
    if rules.max_names is not None and problem.names is not None:
        items = [item for item in chosen if not isinstance(item, Span)]
        distinct = {problem.names[group][option] for group, option in items}
        if len(distinct) > rules.max_names:
            yield f"{len(distinct)} distinct names; {rules.max_names} may be used"
