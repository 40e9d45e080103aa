"""A dynamic program over the groups, left to right, in exact integers: states are what is left.

A state that has reached group g holds its loss and what is left of every limit (int64). It is
dropped when a row can no longer be met, when another state with the same rest loses less, or when
a lower bound on its best completion reaches the cutoff. The bounds are Lagrangian: for multipliers
m, `loss - m rest + least completion of (loss + m cost)`. The relaxation's own multipliers guide
the search; others, learned on the way (`prices.py`), prune states whose rest is out of balance. At
most `beam` states are kept a group; where none was lost to that, the search is a proof.

Legend: S states, T a sample of them, R rows, K sets of multipliers, N columns, G groups.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from puzzle.solver.prices import Prices
from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program

LEARNED, WORTH = 16, 4000  # multipliers learned in one group: at most, and for how many states one
SAMPLE = 64  # states on which multipliers are tried
TRIED = 8  # of the multipliers used in one group
FEW = 400  # states below which multipliers are not worth their time


@dataclass(frozen=True, eq=False)
class Found:
    """The best columns met (None: none), their loss, and the least bound dropped by the beam.

    No answer loses less than `loss`, `lost` and the cutoff.
    """

    columns: Ints | None
    loss: float
    lost: float


@dataclass(frozen=True, eq=False)
class States:
    """Partial answers: `bound_S` is the relaxation's; `parent_S` counts in the group left."""

    loss_S: Floats
    rest_SR: Ints
    bound_S: Floats
    parent_S: Ints
    column_S: Ints

    def __len__(self) -> int:
        return len(self.loss_S)

    def take(self, index: Ints) -> States:
        """These states only."""
        return States(
            self.loss_S[index],
            self.rest_SR[index],
            self.bound_S[index],
            self.parent_S[index],
            self.column_S[index],
        )


class Search:
    """One program and a cutoff; the first of the multipliers given, the relaxation's, guides."""

    def __init__(self, program: Program, multiplier_KR: Floats, cutoff: float) -> None:
        self.program, self.cutoff = program, cutoff
        self.prices = Prices(program, multiplier_KR)
        multiplier_R = multiplier_KR[0]
        value_N = program.loss_N + multiplier_R @ program.cost_RN
        least_K, excess_KN = program.excess(value_N[None])
        self.excess_N = excess_KN[0]
        self.bound = float(least_K[0] - multiplier_R @ program.limit_R)
        _, self.least_RG = program.paths(program.cost_RN)
        self.random = np.random.default_rng(0)
        self.moves = _moves(program)
        self.widest = max(len(columns) for moves in self.moves for _, columns in moves)

    def run(self, beam: int, deadline: float) -> Found:
        """Search with at most `beam` states a group; past the deadline nothing more is found."""
        program = self.program
        inbox: list[list[States]] = [[] for _ in range(program.groups + 1)]
        inbox[0].append(self._root())
        reached: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        lost = math.inf
        for group in range(program.groups + 1):
            if time.perf_counter() > deadline:
                return Found(None, math.inf, self.bound)
            states, worst = self._settle(_together(inbox[group], len(program.rows)), group, beam)
            lost = min(lost, worst)
            inbox[group] = []
            reached.append((states.parent_S.astype(np.int32), states.column_S.astype(np.int32)))
            if group < program.groups:
                for stop, columns in self.moves[group]:
                    inbox[stop].append(self._extend(states, columns, stop))
        if not len(states):
            return Found(None, math.inf, lost)
        last = int(np.argmin(states.loss_S))
        return Found(self._trace(reached, last), float(states.loss_S[last]), lost)

    def _root(self) -> States:
        none: Ints = np.full(1, -1)
        limit_SR = self.program.limit_R[None].copy()
        return States(np.zeros(1), limit_SR, np.array([self.bound]), none, none)

    def _extend(self, states: States, columns_M: Ints, stop: int) -> States:
        """Every state with every column whose bound stays below the cutoff and whose rest fits."""
        bound_SM = states.bound_S[:, None] + self.excess_N[columns_M]
        parent, choice = np.nonzero(bound_SM < self.cutoff)
        column = columns_M[choice]
        rest_SR = states.rest_SR[parent] - self.program.cost_RN[:, column].T
        fits = np.flatnonzero((rest_SR >= self.least_RG[:, stop]).all(axis=1))
        parent, column = parent[fits], column[fits]
        return States(
            states.loss_S[parent] + self.program.loss_N[column],
            rest_SR[fits],
            bound_SM[parent, choice[fits]],
            parent,
            column,
        )

    def _settle(self, states: States, group: int, beam: int) -> tuple[States, float]:
        """Drop equals, states that some multipliers exclude, and all beyond the beam."""
        states = _distinct(states)
        best_S = states.bound_S
        if len(states) > FEW:
            alive, best_S = self._pruned(states, group)
            if len(alive) < len(states):
                states, best_S = states.take(alive), best_S[alive]
        if len(states) <= beam:
            return states, math.inf
        order = np.argpartition(best_S, beam)
        kept = np.sort(order[:beam])
        return states.take(kept), float(best_S[order[beam:]].min())

    def _pruned(self, states: States, group: int) -> tuple[Ints, Floats]:
        """(states left, best_S): a sample says which few sets of multipliers exclude most."""
        prices, over_TK = self.prices, self._sampled(states, group)
        alive: Ints = np.arange(len(states))
        best_S = states.bound_S.copy()
        rest_SR = states.rest_SR.astype(np.float64)
        for _ in range(TRIED):
            hits_K = over_TK.sum(axis=0)
            k = int(hits_K.argmax())
            if hits_K[k] <= max(1, len(over_TK) // 25):
                break
            over_TK = over_TK[~over_TK[:, k]]
            bound_S = prices.bounds(states.loss_S[alive], rest_SR[alive], group, k)
            best_S[alive] = np.maximum(best_S[alive], bound_S)
            alive = alive[bound_S < self.cutoff]
        return alive, best_S

    def _sampled(self, states: States, group: int) -> NDArray[np.bool_]:
        """(T, K): which multipliers exclude a sample of states; some are learned from the rest."""
        sample = self.random.integers(0, len(states), SAMPLE)
        loss_T, rest_TR = states.loss_S[sample], states.rest_SR[sample]
        over_TK = self.prices.bounds(loss_T, rest_TR, group) >= self.cutoff
        left_T = ~over_TK.any(axis=1)
        for _ in range(min(LEARNED, len(states) // WORTH)):
            if not left_T.any():
                break
            t = int(left_T.argmax())
            self.prices.learn(rest_TR[t], group)
            over_T = self.prices.bounds(loss_T, rest_TR, group, -1) >= self.cutoff
            over_TK = np.column_stack([over_TK, over_T])
            left_T &= ~over_T
            left_T[t] = False
        return over_TK

    def _trace(self, reached: list[tuple[NDArray[np.int32], NDArray[np.int32]]], at: int) -> Ints:
        """The columns on the way to state `at` of the last group."""
        group, columns = self.program.groups, []
        while group > 0:
            parent_S, column_S = reached[group]
            columns.append(int(column_S[at]))
            at, group = int(parent_S[at]), int(self.program.start_N[column_S[at]])
        return np.array(sorted(columns), dtype=np.int64)


def _moves(program: Program) -> list[list[tuple[int, Ints]]]:
    """For every group where its columns lead: (stop, columns), the options first."""
    moves: list[list[tuple[int, Ints]]] = [[] for _ in range(program.groups)]
    options, bounds = program.options, program.first_G
    for group in range(program.groups):
        if bounds[group] < bounds[group + 1]:
            moves[group].append((group + 1, np.arange(bounds[group], bounds[group + 1])))
    for column in range(options, program.columns):
        stop = int(program.stop_N[column])
        moves[int(program.start_N[column])].append((stop, np.array([column])))
    return moves


def _together(parts: list[States], rows: int) -> States:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none: Ints = np.empty(0, dtype=np.int64)
        return States(np.empty(0), none.reshape(0, rows), np.empty(0), none, none)
    return States(
        np.concatenate([part.loss_S for part in parts]),
        np.concatenate([part.rest_SR for part in parts]),
        np.concatenate([part.bound_S for part in parts]),
        np.concatenate([part.parent_S for part in parts]),
        np.concatenate([part.column_S for part in parts]),
    )


@cache
def _odd_numbers(count: int) -> Ints:
    """Fixed random factors that tell rests apart by one product."""
    return np.random.default_rng(1).integers(1, 2**62, count) | 1


def _distinct(states: States) -> States:
    """Of states with equal rests the one that loses least, the first of those that tie."""
    if len(states) < 2:
        return states
    hash_S = states.rest_SR @ _odd_numbers(states.rest_SR.shape[1])
    sorted_S = np.sort(hash_S)
    if (sorted_S[1:] != sorted_S[:-1]).all():
        return states
    order = np.lexsort((states.loss_S, hash_S))
    hash_S, rest_SR = hash_S[order], states.rest_SR[order]
    equal = (hash_S[1:] == hash_S[:-1]) & (rest_SR[1:] == rest_SR[:-1]).all(axis=1)
    return states.take(order[np.append(True, ~equal)])
