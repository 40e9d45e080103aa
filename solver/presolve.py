"""Columns and groups that need no decision: what cannot fit, costs too much, or is dominated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program

STEEP = 6.0  # how much less an option at the gap weighs than one at the bound, as a power of e


@dataclass(frozen=True, eq=False)
class Reduced:
    """A smaller program: `columns_N` are its columns in the original one.

    `fixed_N` are original columns every answer holds, of total loss `loss`; their costs are
    already taken off the limits.
    """

    program: Program
    columns_N: Ints
    fixed_N: Ints
    loss: float

    def original(self, columns_N: Ints) -> Ints:
        """An answer of the smaller program as columns of the original."""
        return np.sort(np.concatenate([self.fixed_N, self.columns_N[columns_N]]))


def fitting(program: Program) -> Ints | None:
    """The columns that fit every limit with the cheapest rest; None where none is left."""
    before_RG, after_RG = program.paths(program.cost_RN)
    if (after_RG[:, 0] > program.limit_R).any():
        return None
    fits_N = np.ones(program.columns, dtype=bool)
    for row, limit in enumerate(program.limit_R.tolist()):
        # Each place is reachable or its columns are of no use; FAR + FAR would overflow.
        before_N, after_N = before_RG[row, program.start_N], after_RG[row, program.stop_N]
        room_N = limit - np.minimum(before_N, 2**61) - np.minimum(after_N, 2**61)
        fits_N &= program.cost_RN[row] <= room_N
    return np.flatnonzero(fits_N) if program.keep(np.flatnonzero(fits_N)).coverable else None


def binding(program: Program) -> Program:
    """Without the rows that no answer can exceed."""
    _, most_RG = program.paths(-program.cost_RN)
    rows = np.flatnonzero(-most_RG[:, 0] > program.limit_R)
    if len(rows) == len(program.rows):
        return program
    return replace(
        program,
        rows=tuple(program.rows[row] for row in rows),
        cost_RN=program.cost_RN[rows],
        limit_R=program.limit_R[rows],
    )


def reduce(program: Program, excess_N: Floats, gap: float) -> Reduced:
    """Keep columns of excess below `gap` that no other dominates; settle groups of one option.

    Groups are put in order, those first whose options are few and far from the bound, so that a
    search branches late. Spans tie groups to their places.
    """
    near_N = np.flatnonzero(excess_N < gap)
    if not near_N.size:
        near_N = np.flatnonzero(excess_N <= excess_N.min())
    kept_N = near_N[undominated(program.keep(near_N))]
    kept = program.keep(kept_N)
    if kept.options < kept.columns:
        return Reduced(kept, kept_N, np.empty(0, dtype=np.int64), 0.0)
    size_G = np.bincount(kept.start_N, minlength=program.groups)
    settled_G = size_G == 1
    if settled_G.all():
        settled_G[-1] = False
    fixed_N = kept_N[settled_G[kept.start_N]]
    weight_N = np.exp(-STEEP * np.minimum(excess_N[kept_N] / max(gap, 1e-300), 1.0))
    weight_G = np.bincount(kept.start_N, weight_N, minlength=program.groups)
    order_G = np.argsort(np.where(settled_G, -1.0, weight_G), kind="stable")[settled_G.sum() :]
    rank_G = np.full(program.groups, -1)
    rank_G[order_G] = np.arange(len(order_G))
    free_N = np.flatnonzero(rank_G[kept.start_N] >= 0)
    free_N = free_N[np.argsort(rank_G[kept.start_N[free_N]], kind="stable")]
    rank_N = rank_G[kept.start_N[free_N]]
    smaller = replace(
        kept.keep(free_N),
        groups=len(order_G),
        limit_R=program.limit_R - program.cost_RN[:, fixed_N].sum(axis=1),
        start_N=rank_N,
        stop_N=rank_N + 1,
    )
    return Reduced(smaller, kept_N[free_N], fixed_N, float(program.loss_N[fixed_N].sum()))


def undominated(program: Program) -> Ints:
    """Columns that no other of the same groups matches or beats in loss and every cost.

    Of columns equal in everything the first stays. Where names are limited, a column is dominated
    only by one of its own name.
    """
    options = program.options
    size_G = np.bincount(program.start_N[:options], minlength=program.groups)
    size_N = size_G[program.start_N[:options]]
    first_N = np.repeat(np.cumsum(size_G) - size_G, size_G)
    mine = np.repeat(np.arange(options), size_N)
    other = np.arange(len(mine)) - np.repeat(np.cumsum(size_N) - size_N, size_N)
    other += first_N[mine]
    beats = program.loss_N[other] <= program.loss_N[mine]
    equal = program.loss_N[other] == program.loss_N[mine]
    for cost_N in program.cost_RN:
        beats &= cost_N[other] <= cost_N[mine]
        equal &= cost_N[other] == cost_N[mine]
    if program.max_names is not None:
        beats &= program.name_N[other] == program.name_N[mine]
    beats &= ~equal | (other < mine)
    dominated_N = np.zeros(program.columns, dtype=bool)
    dominated_N[mine[beats]] = True
    return np.flatnonzero(~dominated_N)
