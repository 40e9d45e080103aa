"""A problem as flat arrays: what presolve, dynamic program and backends work on.

Legend: N columns (options and spans), R rows (limits), G groups. Every row reads `cost x <= limit`
in int64: a lower limit is a row of negated costs, `Unlike` a row that counts equal picks.
Forbidden options have no column. A solution is a set of columns that covers every group once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from puzzle.solver.problem import Floats, Ints, Problem, ProblemError

Number = TypeVar("Number", np.int64, np.float64)
FAR = np.int64(2**62)  # stands for infinity in integers: beyond every sum of costs


@dataclass(frozen=True, eq=False)
class Program:
    """Columns are sorted by group; the options come first, the spans last."""

    groups: int
    rows: tuple[str, ...]
    loss_N: Floats
    cost_RN: Ints
    limit_R: Ints
    start_N: Ints
    stop_N: Ints
    pick_N: Ints
    name_N: Ints
    max_names: int | None

    @property
    def columns(self) -> int:
        """Number of columns, N."""
        return len(self.loss_N)

    @cached_property
    def options(self) -> int:
        """Number of columns that are options of one group; spans follow them."""
        return int(np.searchsorted(self.pick_N < 0, True))

    @cached_property
    def first_G(self) -> Ints:
        """Where the options of each group begin, and at G where the last group's end."""
        return np.searchsorted(self.start_N[: self.options], np.arange(self.groups + 1))

    @cached_property
    def spread(self) -> float:
        """Greatest minus least total loss, whatever the limits."""
        least_K, _ = self.excess(self.loss_N[None])
        minus_most_K, _ = self.excess(-self.loss_N[None])
        return float(-minus_most_K[0] - least_K[0])

    @property
    def coverable(self) -> bool:
        """Whether some columns cover every group once, whatever the limits."""
        if self.options == self.columns:
            return len(np.unique(self.start_N)) == self.groups
        _, after_KG = self.paths(np.zeros((1, self.columns)))
        return bool(np.isfinite(after_KG[0, 0]))

    def keep(self, columns: Ints) -> Program:
        """The program with only these columns, given in ascending order."""
        return replace(
            self,
            loss_N=self.loss_N[columns],
            cost_RN=self.cost_RN[:, columns],
            start_N=self.start_N[columns],
            stop_N=self.stop_N[columns],
            pick_N=self.pick_N[columns],
            name_N=self.name_N[columns],
        )

    def least_options(self, value_KN: NDArray[Number]) -> NDArray[Number]:
        """For K values of every option the least of each group, shape (K, G); no option: zero."""
        first_G = self.first_G
        present_G = np.flatnonzero(first_G[1:] > first_G[:-1])
        if len(present_G) == self.groups:
            return np.minimum.reduceat(value_KN, first_G[:-1], axis=1)
        least_KG = np.zeros((len(value_KN), self.groups), dtype=value_KN.dtype)
        if present_G.size:
            least_KG[:, present_G] = np.minimum.reduceat(value_KN, first_G[present_G], axis=1)
        return least_KG

    def paths(self, value_KN: NDArray[Number]) -> tuple[NDArray[Number], NDArray[Number]]:
        """(before_KG, after_KG), both (K, G + 1): least total of the columns that cover the groups
        before g, and from g to the end, for K values of every column."""
        groups, options = self.groups, self.options
        shape = len(value_KN), groups + 1
        if options == self.columns:
            least_KG = self.least_options(value_KN)
            before_KG = np.zeros(shape, dtype=value_KN.dtype)
            np.cumsum(least_KG, axis=1, out=before_KG[:, 1:])
            after_KG = np.zeros(shape, dtype=value_KN.dtype)
            after_KG[:, :-1] = np.cumsum(least_KG[:, ::-1], axis=1)[:, ::-1]
            return before_KG, after_KG
        before_KG = self._span_paths(value_KN, self.start_N, self.stop_N, range(1, groups + 1))
        after_KG = self._span_paths(value_KN, self.stop_N, self.start_N, range(groups - 1, -1, -1))
        return before_KG, after_KG

    def excess(self, value_KN: Floats) -> tuple[Floats, Floats]:
        """(least_K, excess_KN): the least path's total, and how much more one through n takes."""
        if self.options == self.columns:
            least_KG = self.least_options(value_KN)
            return least_KG.sum(axis=1), value_KN - least_KG[:, self.start_N]
        before_KG, after_KG = self.paths(value_KN)
        through_KN = before_KG[:, self.start_N] + value_KN + after_KG[:, self.stop_N]
        return after_KG[:, 0], np.maximum(through_KN - after_KG[:, :1], 0.0)

    def _span_paths(
        self, value_KN: NDArray[Number], from_N: Ints, to_N: Ints, order: range
    ) -> NDArray[Number]:
        """Least path to every place in the order given; unreachable places hold a large value."""
        far = FAR if value_KN.dtype == np.int64 else np.inf
        reach_KG = np.full((len(value_KN), self.groups + 1), far, dtype=value_KN.dtype)
        reach_KG[:, order.start - order.step] = 0
        by_place = np.argsort(to_N, kind="stable")
        bounds = np.searchsorted(to_N[by_place], np.arange(self.groups + 2))
        for place in order:
            mine = by_place[bounds[place] : bounds[place + 1]]
            at_KM = reach_KG[:, from_N[mine]]
            sums_KM = np.where(at_KM == far, far, at_KM + value_KN[:, mine])
            reach_KG[:, place] = sums_KM.min(axis=1, initial=far)
        return reach_KG

    def picks(self, columns: Ints) -> tuple[int, ...]:
        """What `Solution.picks` says of these columns."""
        picks = np.empty(self.groups, dtype=np.int64)
        for column in columns:
            picks[self.start_N[column] : self.stop_N[column]] = self.pick_N[column]
        return tuple(picks.tolist())


def program_of(problem: Problem) -> Program:
    """Flatten a problem; ProblemError where the rules leave a group without any option."""
    rules, sizes = problem.rules, [len(group) for group in problem.loss]
    spans, total = rules.spans, sum(sizes)
    group_N = np.repeat(np.arange(problem.groups), sizes)
    option_N = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    every = np.arange(len(spans))
    name_N, number = np.full(total + len(spans), -1), {}
    if problem.names is not None and rules.max_names is not None:
        flat = [name for group in problem.names for name in group]
        number = {name: index for index, name in enumerate(dict.fromkeys(flat))}
        name_N[:total] = [number[name] for name in flat]
    costs = {
        name: np.concatenate([*table, np.array([span.cost[name] for span in spans], np.int64)])
        for name, table in problem.cost.items()
    }
    whole = Program(
        groups=problem.groups,
        rows=(),
        loss_N=np.concatenate([*problem.loss, np.array([span.loss for span in spans])]),
        cost_RN=np.empty((0, total + len(spans)), dtype=np.int64),
        limit_R=np.empty(0, dtype=np.int64),
        start_N=np.concatenate([group_N, np.array([span.start for span in spans], np.int64)]),
        stop_N=np.concatenate([group_N + 1, np.array([span.stop for span in spans], np.int64)]),
        pick_N=np.concatenate([option_N, ~every]),
        name_N=name_N,
        max_names=rules.max_names if len(number) > (rules.max_names or 0) else None,
    )
    return _without_forbidden(problem, _with_rows(problem, whole, costs))


def _with_rows(problem: Problem, program: Program, costs: dict[str, Ints]) -> Program:
    rows = [(name, costs[name], limit) for name, limit in problem.limit.items()]
    rows += [(f"{k} (at least)", -costs[k], -least) for k, least in problem.at_least.items()]
    for index, earlier in enumerate(problem.rules.unlike):
        equal_N = np.zeros(program.columns, dtype=np.int64)
        for group, pick in enumerate(earlier.picks):
            covers_N = (program.start_N <= group) & (group < program.stop_N)
            equal_N += covers_N & (program.pick_N == pick)
        rows.append((f"equal to earlier solution {index}", equal_N, earlier.at_most))
    return replace(
        program,
        rows=tuple(name for name, _, _ in rows),
        cost_RN=np.array([cost for _, cost, _ in rows], np.int64).reshape(-1, program.columns),
        limit_R=np.array([limit for _, _, limit in rows], dtype=np.int64),
    )


def _without_forbidden(problem: Problem, program: Program) -> Program:
    rules, keep_N = problem.rules, np.ones(program.columns, dtype=bool)
    for group, option in rules.forbidden:
        keep_N &= (program.start_N != group) | (program.pick_N != option)
    for group, option in rules.fixed:
        covers_N = (program.start_N <= group) & (group < program.stop_N)
        keep_N &= ~covers_N | ((program.pick_N == option) & (program.start_N == group))
    kept = program.keep(np.flatnonzero(keep_N))
    if not kept.coverable:
        edge_G = np.bincount(kept.start_N, minlength=problem.groups + 1)
        edge_G -= np.bincount(kept.stop_N, minlength=problem.groups + 1)
        group = int(np.argmin(np.cumsum(edge_G)[:-1]))  # the group fewest columns cover
        raise ProblemError(f"all {len(problem.loss[group])} options of group {group} are forbidden")
    return kept
