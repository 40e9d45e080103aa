"""Better answers by search over some groups at a time, the rest held where it is.

For instances too hard to prove: where losses follow costs, most of what an answer lacks is slack
that some exchange among a dozen groups or two would use. The groups are taken in two halves; of
each, only combinations near enough to the bound to be of use are built. With the relaxation's
multipliers m, a pair of halves loses `reduced loss + m rest - m room`, so the partners of a half
worth trying are those whose priced cost comes nearest below what it leaves: after sorting, a short
window.

Legend: N columns, R rows, M groups that may move, C combinations of one half.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program
from puzzle.solver.relax import lagrangian

COMBINATIONS = 20_000  # of the options of one half's groups; beyond, those nearest to the bound
MOST = 12  # groups in one half
WINDOW = 32  # partners tried for each combination


@dataclass(frozen=True, eq=False)
class Half:
    """Combinations of the options of some groups: which, their loss, costs, priced costs."""

    columns_CM: Ints
    loss_C: Floats
    cost_RC: Ints
    priced_C: Floats


def polished(
    program: Program, multiplier_R: Floats, columns_N: Ints, *, deadline: float, failures: int
) -> Ints:
    """Columns of no greater loss; stops after so many failures in a row or at the deadline.

    Random groups, seeded by the answer given. Groups under a span stay as they are, and programs
    that limit names are returned as they came.
    """
    movable = np.flatnonzero(columns_N < program.options)
    if program.max_names is not None or len(movable) < 2:
        return columns_N
    random = np.random.default_rng(columns_N)
    over_N = lagrangian(program, multiplier_R)[1]
    option_G = np.split(np.arange(program.options), program.first_G[1:-1])
    best_N, failed = columns_N.copy(), 0
    while failed < failures and time.perf_counter() < deadline:
        size = min(int(random.integers(1, MOST + 1)), len(movable) // 2)
        places = random.choice(movable, 2 * size, replace=False)
        held_N = best_N[places]
        rest_R = program.limit_R - program.cost_RN[:, np.delete(best_N, places)].sum(axis=1)
        slack_R = rest_R - program.cost_RN[:, held_N].sum(axis=1)
        # An answer that loses less lies nearer to the bound than this one does without its slack.
        most = float(over_N[held_N].sum() + multiplier_R @ slack_R)
        sets = [option_G[program.start_N[column]] for column in held_N]
        a, b = (
            _half(program, multiplier_R, over_N, part, most) for part in (sets[:size], sets[size:])
        )
        below = float(program.loss_N[held_N].sum()) - 1e-15
        moved = _better(a, b, rest_R, float(multiplier_R @ rest_R), below)
        failed = failed + 1 if moved is None else 0
        if moved is not None:
            best_N[places] = moved
    return best_N


def _half(
    program: Program, multiplier_R: Floats, over_N: Floats, sets: list[Ints], most: float
) -> Half:
    """Combinations of one column of each set that lie at most so far above the bound."""
    columns_CM: Ints = np.empty((1, 0), dtype=np.int64)
    over_C = np.zeros(1)
    for columns in sets:
        sum_CX = over_C[:, None] + over_N[columns]
        at, choice = np.nonzero(sum_CX <= most)
        over_C = sum_CX[at, choice]
        if len(at) > COMBINATIONS:
            near = np.argpartition(over_C, COMBINATIONS)[:COMBINATIONS]
            at, choice, over_C = at[near], choice[near], over_C[near]
        columns_CM = np.column_stack([columns_CM[at], columns[choice]])
    cost_RC = program.cost_RN[:, columns_CM].sum(axis=2)
    return Half(columns_CM, program.loss_N[columns_CM].sum(axis=1), cost_RC, multiplier_R @ cost_RC)


def _better(a: Half, b: Half, rest_R: Ints, room: float, below: float) -> Ints | None:
    """The columns of a pair that fits the rest and loses least, where that is less than `below`."""
    if not len(a.loss_C) or not len(b.loss_C):
        return None
    order_C = np.argsort(b.priced_C, kind="stable")
    ends_C = np.searchsorted(b.priced_C[order_C], room - a.priced_C, "right")
    partner_CW = ends_C[:, None] - 1 - np.arange(WINDOW)
    loss_CW = a.loss_C[:, None] + b.loss_C[order_C][np.maximum(partner_CW, 0)]
    loss_CW[partner_CW < 0] = np.inf
    at_a, window = np.nonzero(loss_CW < below)
    at_b = order_C[partner_CW[at_a, window]]
    fits = (a.cost_RC[:, at_a] + b.cost_RC[:, at_b] <= rest_R[:, None]).all(axis=0)
    if not fits.any():
        return None
    best = int(np.argmin(np.where(fits, loss_CW[at_a, window], np.inf)))
    return np.concatenate([a.columns_CM[at_a[best]], b.columns_CM[at_b[best]]])
