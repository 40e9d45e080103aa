"""Better answers by search over a few groups at a time, the rest held where it is.

For instances too hard to prove: where losses follow costs, most of what an answer lacks is slack
that some exchange among a few groups would use. The groups are taken in two halves. With the
relaxation's multipliers m, a pair of halves loses `reduced loss + m rest - m room`, so the partners
of a half worth trying are those whose priced cost comes nearest below what it leaves: after
sorting, a short window.

Legend: N columns, R rows, M groups that may move, C combinations of one half.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program

COMBINATIONS = 20_000  # of the options of one half's groups
MOST = 5  # groups in one half
WINDOW = 32  # partners tried for each combination


@dataclass(frozen=True, eq=False)
class Half:
    """Every combination of the options of some groups: which, their loss, costs, priced costs."""

    columns_CM: Ints
    loss_C: Floats
    cost_RC: Ints
    priced_C: Floats

    def take(self, index_C: Ints) -> Half:
        """These combinations only."""
        return Half(
            self.columns_CM[index_C],
            self.loss_C[index_C],
            self.cost_RC[:, index_C],
            self.priced_C[index_C],
        )


def polished(
    program: Program, multiplier_R: Floats, columns_N: Ints, *, deadline: float, failures: int
) -> Ints:
    """Columns of no greater loss; stops after so many failures in a row or at the deadline.

    Random groups from a fixed seed. Groups under a span stay as they are, and programs that limit
    names are returned as they came.
    """
    movable = np.flatnonzero(columns_N < program.options)
    if program.max_names is not None or len(movable) < 2:
        return columns_N
    random = np.random.default_rng(0)
    priced_N = program.loss_N + multiplier_R @ program.cost_RN
    ranked_N = np.lexsort((priced_N[: program.options], program.start_N[: program.options]))
    ranked_G = np.split(ranked_N, program.first_G[1:-1])
    best_N, failed = columns_N.copy(), 0
    while failed < failures and time.perf_counter() < deadline:
        size = min(int(random.integers(1, MOST + 1)), len(movable) // 2)
        widest = int(COMBINATIONS ** (1 / size))
        places = random.choice(movable, 2 * size, replace=False)
        sets = [ranked_G[program.start_N[column]][:widest] for column in best_N[places]]
        a, b = (_half(program, multiplier_R, part) for part in (sets[:size], sets[size:]))
        rest_R = program.limit_R - program.cost_RN[:, np.delete(best_N, places)].sum(axis=1)
        below = float(program.loss_N[best_N[places]].sum()) - 1e-15
        moved = _better(a, b, rest_R, float(multiplier_R @ rest_R), below)
        failed = failed + 1 if moved is None else 0
        if moved is not None:
            best_N[places] = moved
    return best_N


def _half(program: Program, multiplier_R: Floats, sets: list[Ints]) -> Half:
    columns_CM = np.stack([each.ravel() for each in np.meshgrid(*sets, indexing="ij")], axis=1)
    loss_C = np.zeros(len(columns_CM))
    cost_RC = np.zeros((len(multiplier_R), len(columns_CM)), dtype=np.int64)
    for column_C in columns_CM.T:
        loss_C += program.loss_N[column_C]
        cost_RC += program.cost_RN[:, column_C]
    return Half(columns_CM, loss_C, cost_RC, multiplier_R @ cost_RC)


def _better(a: Half, b: Half, rest_R: Ints, room: float, below: float) -> Ints | None:
    """The columns of a pair that fits the rest and loses least, where that is less than `below`."""
    reduced = [half.loss_C + half.priced_C for half in (a, b)]
    allowed = below + room - sum(float(each.min()) for each in reduced)
    a, b = (
        half.take(np.flatnonzero(each - each.min() <= allowed))
        for half, each in zip((a, b), reduced)
    )
    if not len(a.loss_C) or not len(b.loss_C):
        return None
    b = b.take(np.argsort(b.priced_C, kind="stable"))
    ends_C = np.searchsorted(b.priced_C, room - a.priced_C, "right")
    partner_CW = ends_C[:, None] - 1 - np.arange(WINDOW)
    loss_CW = a.loss_C[:, None] + b.loss_C[np.maximum(partner_CW, 0)]
    loss_CW[partner_CW < 0] = np.inf
    at_a, window = np.nonzero(loss_CW < below)
    at_b = partner_CW[at_a, window]
    fits = (a.cost_RC[:, at_a] + b.cost_RC[:, at_b] <= rest_R[:, None]).all(axis=0)
    if not fits.any():
        return None
    best = int(np.argmin(np.where(fits, loss_CW[at_a, window], np.inf)))
    return np.concatenate([a.columns_CM[at_a[best]], b.columns_CM[at_b[best]]])
