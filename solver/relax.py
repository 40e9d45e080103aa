"""The linear relaxation: what each limit costs (the multipliers), and how far each column is off.

For multipliers m >= 0 every answer x has `loss x >= least path of (loss + m cost) - m limit`, the
Lagrangian bound. Its best value is the linear program's optimum, found here by column generation:
HiGHS solves over a few columns, every group then offers its best column at the duals.

Legend: N columns, R rows, G groups, K sets of multipliers. A path picks columns that cover the
groups from left to right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program

ROUNDS = 100
PENALTY = 1e4  # of breaking a limit by all of it, in average spreads of a group's loss
CLOSE = 1e-10  # relative distance at which the bound counts as the linear program's optimum


@dataclass(frozen=True, eq=False)
class Relaxation:
    """`multiplier_R` is loss per unit of each row, `bound` a lower bound on every answer's loss.

    An answer that holds column n loses at least `bound + excess_N[n]`. `infeasible` says that no
    answer satisfies the limits, not even a fractional one. `useful_N` are the columns generated.
    """

    multiplier_R: Floats
    bound: float
    excess_N: Floats
    infeasible: bool
    useful_N: Ints


def relax(program: Program, start_N: Ints | None = None) -> Relaxation:
    """Solve the linear relaxation, from columns of a similar program's relaxation if given."""
    master = Master(program, start_N)
    multiplier_R, broken = master.solve(PENALTY)
    infeasible = False
    if broken:
        infeasible = _no_fraction_fits(program, master.columns)
        if not infeasible:
            multiplier_R, broken = master.solve(PENALTY * 1e6)
    bound, excess_N = lagrangian(program, multiplier_R)
    return Relaxation(multiplier_R, bound, excess_N, infeasible, master.columns)


def lagrangian(program: Program, multiplier_R: Floats) -> tuple[float, Floats]:
    """(bound, excess_N) at these multipliers."""
    value_N = program.loss_N + multiplier_R @ program.cost_RN
    least_K, excess_KN = program.excess(value_N[None])
    return float(least_K[0] - multiplier_R @ program.limit_R), excess_KN[0]


def _no_fraction_fits(program: Program, columns_N: Ints) -> bool:
    """Whether some multipliers prove, well above rounding, that the limits exclude each other."""
    phase_one = Master(replace(program, loss_N=np.zeros(program.columns)), columns_N)
    multiplier_R, broken = phase_one.solve(1.0)
    if not broken:
        return False
    cost_N = multiplier_R @ program.cost_RN
    least_K, _ = program.excess(cost_N[None])
    size = float(np.abs(multiplier_R) @ np.abs(program.limit_R.astype(float)))
    size += float(np.abs(cost_N).max()) * program.groups
    return float(least_K[0] - multiplier_R @ program.limit_R) > 1e-10 * size


class Master:
    """The linear program over the columns generated so far; limits may be broken at a price."""

    def __init__(self, program: Program, start_N: Ints | None) -> None:
        self.program, self.loss_N = program, program.loss_N
        self.spread = program.spread / program.groups or 1.0
        self.share_RN, self.room_R, self.unit_R = shares(program)
        self.least_RG = least_before(program)
        self.columns: Ints = np.empty(0, dtype=np.int64)
        self.inside_N = np.zeros(program.columns, dtype=bool)
        self.highs, self.done = self._empty(), 0
        self._add(self._first() if start_N is None else start_N)

    def solve(self, penalty: float) -> tuple[Floats, bool]:
        """(multipliers per unit of each row, whether some limit stays broken at this price)."""
        program, rows, price = self.program, len(self.program.rows), self.penalize(penalty)
        best, best_R = -math.inf, np.zeros(rows)
        for _ in range(ROUNDS):
            self.highs.run()
            dual = np.array(self.highs.getSolution().row_dual)
            row_R = np.clip(-dual[:rows], 0.0, price)
            value_N = self.loss_N + row_R @ self.share_RN
            least_K, excess_KN = program.excess(value_N[None])
            bound = float(least_K[0] - row_R @ self.room_R)
            if bound > best:
                best, best_R = bound, row_R
            optimum = self.highs.getObjectiveValue()
            if optimum - best <= CLOSE * max(abs(optimum), self.spread):
                break
            new_N = np.flatnonzero((excess_KN[0] <= 1e-9 * self.spread) & ~self.inside_N)
            if not new_N.size:
                break
            self._add(new_N)
        broken = np.array(self.highs.getSolution().col_value)[:rows].max(initial=0.0) > 1e-8
        return best_R / self.unit_R, bool(broken)

    def penalize(self, penalty: float) -> float:
        """Set the price of breaking a limit by all of it, in average spreads of a group's loss."""
        price = penalty * self.spread
        for row in range(len(self.program.rows)):
            self.highs.changeColCost(row, price)
        return price

    def price(self, rest_R: Ints, group: int) -> Floats:
        """Multipliers for the groups from this one on, with so much left of every limit."""
        rows, infinite = len(self.program.rows), np.full(len(self.program.rows), -math.inf)
        room_R = (rest_R - (self.least_RG[:, -1] - self.least_RG[:, group])) / self.unit_R
        self.highs.changeRowsBounds(rows, np.arange(rows, dtype=np.int32), infinite, room_R)
        for done in range(self.done, group):
            self.highs.changeRowBounds(rows + done, 0.0, 0.0)
        self.done = max(self.done, group)
        self.highs.run()
        dual_R = np.array(self.highs.getSolution().row_dual)[:rows]
        return np.maximum(-dual_R, 0.0) / self.unit_R

    def _empty(self) -> Any:
        """A row per limit, one per group (covered once), and a column that breaks each limit."""
        import highspy

        rows, groups = len(self.program.rows), self.program.groups
        highs = quiet_highs()
        highs.setOptionValue("presolve", "off")
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = 0, rows + groups
        lp.row_lower_ = np.concatenate([np.full(rows, -math.inf), np.ones(groups)])
        lp.row_upper_ = np.concatenate([self.room_R, np.ones(groups)])
        highs.passModel(lp)
        every = np.arange(rows, dtype=np.int32)
        ones, free = np.ones(rows), np.full(rows, math.inf)
        if rows:
            highs.addCols(rows, ones, np.zeros(rows), free, rows, every, every, -ones)
        return highs

    def _first(self) -> Ints:
        """The best column of each group at a few prices of all rows together, and of each row."""
        program = self.program
        mean_N = self.share_RN.mean(axis=0) if len(program.rows) else np.zeros(program.columns)
        mean_spread = replace(program, loss_N=mean_N).spread / program.groups or 1.0
        prices = self.spread / mean_spread * np.array([0, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 5, 1e6])
        tries_KN = [self.loss_N + price * mean_N for price in prices]
        if (program.cost_RN < 0).any():
            tries_KN += [self.loss_N + 1e6 * self.spread * row_N for row_N in self.share_RN]
        near_N = np.zeros(program.columns, dtype=bool)
        for value_N in tries_KN:
            least_K, excess_KN = program.excess(value_N[None])
            near_N |= excess_KN[0] <= 1e-12 * abs(least_K[0])
        return np.flatnonzero(near_N)

    def _add(self, columns_N: Ints) -> None:
        program, rows, count = self.program, len(self.program.rows), len(columns_N)
        length_N = (program.stop_N - program.start_N)[columns_N]
        entries_N = rows + length_N
        first_N = np.cumsum(entries_N) - entries_N
        index = np.empty(int(entries_N.sum()), dtype=np.int32)
        value = np.ones(index.size)
        at_NR = first_N[:, None] + np.arange(rows)
        index[at_NR], value[at_NR] = np.arange(rows), self.share_RN[:, columns_N].T
        covers = np.repeat(first_N + rows, length_N) + _counts(length_N)
        index[covers] = rows + np.repeat(program.start_N[columns_N], length_N) + _counts(length_N)
        free, zero = np.full(count, math.inf), np.zeros(count)
        cost_N = self.loss_N[columns_N]
        self.highs.addCols(
            count, cost_N, zero, free, index.size, first_N.astype(np.int32), index, value
        )
        self.columns = np.concatenate([self.columns, columns_N])
        self.inside_N[columns_N] = True


def shares(program: Program) -> tuple[Floats, Floats, Floats]:
    """(share_RN, room_R, unit_R): rows near one, `share x <= room`, in units of `unit_R`.

    The least an option of each group costs is taken off, so that what is left is what can be
    chosen; a floating-point solver's tolerance is then a share of that.
    """
    total_RG = least_before(program)
    off_RN = total_RG[:, program.stop_N] - total_RG[:, program.start_N]
    above_RN = program.cost_RN - off_RN
    room_R = program.limit_R - total_RG[:, -1]
    unit_R = np.maximum(np.abs(room_R), np.abs(above_RN).max(axis=1, initial=1)).astype(float)
    return above_RN / unit_R[:, None], room_R / unit_R, unit_R


def least_before(program: Program) -> Ints:
    """(R, G + 1): the least that one option of each group before g costs together."""
    total_RG = np.zeros((len(program.rows), program.groups + 1), dtype=np.int64)
    if program.options:
        least_RG = program.least_options(program.cost_RN[:, : program.options])
        np.cumsum(least_RG, axis=1, out=total_RG[:, 1:])
    return total_RG


def quiet_highs() -> Any:
    """A HiGHS solver that prints nothing and runs on one thread."""
    import highspy

    # The base class is the solver itself; highspy.Highs adds callbacks, and prints a banner.
    highs = highspy.Highs.__base__()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    return highs


def _counts(length_N: Ints) -> Ints:
    """0, 1, ..., length - 1 for every length, one after the other."""
    return np.arange(int(length_N.sum())) - np.repeat(np.cumsum(length_N) - length_N, length_N)
