"""Better answers by exact search over a few groups at a time, the rest held where it is.

For instances too hard to prove: where losses follow costs, most of what an answer lacks is slack
that some exchange among a few groups would use.
"""

from __future__ import annotations

import time

import numpy as np

from puzzle.solver.problem import Ints
from puzzle.solver.program import Program

COMBINATIONS = 200_000  # of options tried at once
FEWEST, MOST = 2, 8  # groups at once


def polished(program: Program, columns_N: Ints, *, deadline: float, failures: int) -> Ints:
    """Columns of no greater loss; stops after so many failures in a row or at the deadline.

    Random groups from a fixed seed. Groups under a span stay as they are, and programs that limit
    names are returned as they came.
    """
    movable = np.flatnonzero(columns_N < program.options)
    if program.max_names is not None or len(movable) < FEWEST:
        return columns_N
    random = np.random.default_rng(0)
    first_G = program.first_G
    group_M = program.start_N[columns_N[movable]]
    size_M = np.diff(first_G)[group_M]
    best_N, failed = columns_N.copy(), 0
    while failed < failures and time.perf_counter() < deadline:
        order = random.permutation(len(movable))
        count = int(np.searchsorted(np.cumprod(size_M[order[:MOST]]), COMBINATIONS, "right"))
        chosen = order[: max(FEWEST, count)]
        places = movable[chosen]
        sets = [np.arange(first_G[g], first_G[g + 1]) for g in group_M[chosen]]
        others_N = np.delete(best_N, places)
        rest_R = program.limit_R - program.cost_RN[:, others_N].sum(axis=1)
        moved_N = _best(program, sets, rest_R)
        if program.loss_N[moved_N].sum() < program.loss_N[best_N[places]].sum() - 1e-15:
            best_N[places], failed = moved_N, 0
        else:
            failed += 1
    return best_N


def _best(program: Program, sets: list[Ints], rest_R: Ints) -> Ints:
    """One column of each set, of the least loss together, with costs within the rest."""
    loss = np.zeros(1)
    cost_R = [np.zeros(1, dtype=np.int64) for _ in rest_R]
    for columns in sets:
        loss = (loss[:, None] + program.loss_N[columns]).ravel()
        cost_R = [
            (total[:, None] + cost_N[columns]).ravel()
            for total, cost_N in zip(cost_R, program.cost_RN)
        ]
    fits = np.ones(len(loss), dtype=bool)
    for total, rest in zip(cost_R, rest_R.tolist()):
        fits &= total <= rest
    at = np.unravel_index(np.argmin(np.where(fits, loss, np.inf)), [len(each) for each in sets])
    return np.array([columns[i] for columns, i in zip(sets, at)])
