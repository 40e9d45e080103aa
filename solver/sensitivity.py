"""`sensitivity`: what each limit costs, and what would change first if it moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from puzzle.solver.auto import bounded
from puzzle.solver.problem import Floats, Ints, Problem, ProblemError, Solution
from puzzle.solver.program import Program, program_of

FIRST = 5  # changes named for each limit and direction


@dataclass(frozen=True)
class Change:
    """One group that moves to another option, and what that does to the loss and the limit.

    `cost` is the change of the limit's cost (negated for a lower limit), `rate` the loss given up
    or gained per unit of it, the other limits' changes counted at their prices.
    """

    group: int
    option: int
    loss: float
    cost: int
    rate: float


@dataclass(frozen=True)
class Sensitivity:
    """`price[limit]` is the loss one more unit of it saves, near the limit as it stands.

    `tighter[limit]` lists the changes that free some of it most cheaply, `looser[limit]` those
    that make the best use of more, the first to happen first.
    """

    price: Mapping[str, float]
    tighter: Mapping[str, tuple[Change, ...]]
    looser: Mapping[str, tuple[Change, ...]]

    def __str__(self) -> str:
        lines = []
        for name, price in self.price.items():
            lines.append(f"{name}: one more unit saves {price:.4g}")
            for word, changes in (
                ("tighter", self.tighter[name]),
                ("looser", self.looser[name]),
            ):
                first = ", ".join(f"group {each.group} to {each.option}" for each in changes)
                lines.append(f"  {word}: {first or 'nothing'}")
        return "\n".join(lines)


def sensitivity(problem: Problem, solution: Solution) -> Sensitivity:
    """The multipliers of the linear relaxation, and single-group changes by their rates.

    Groups under a span are not looked at.
    """
    if solution.picks is None:
        raise ProblemError("sensitivity needs a solution with picks; this one is infeasible")
    program = program_of(problem)
    price = dict.fromkeys(program.rows, 0.0)
    start = bounded(program)
    if start.relaxation is not None:
        price |= dict(zip(start.program.rows, start.relaxation.multiplier_R.tolist()))
    price_R = np.array([price[name] for name in program.rows])
    from_M, to_M = _moves(program, np.array(solution.picks))
    value_N = program.loss_N + price_R @ program.cost_RN
    tighter, looser = {}, {}
    for row, name in enumerate(program.rows):
        # What the move loses, the other limits' changes counted at their prices.
        own_N = value_N - price_R[row] * program.cost_RN[row]
        worse_M = own_N[to_M] - own_N[from_M]
        cost_M = program.cost_RN[row, to_M] - program.cost_RN[row, from_M]
        rate_M = -worse_M / np.where(cost_M == 0, 1, cost_M)
        frees, uses = np.flatnonzero(cost_M < 0), np.flatnonzero((cost_M > 0) & (worse_M < 0))
        frees = frees[np.argsort(rate_M[frees], kind="stable")][:FIRST]
        uses = uses[np.argsort(-rate_M[uses], kind="stable")][:FIRST]
        tighter[name] = _changes(program, from_M[frees], to_M[frees], cost_M[frees], rate_M[frees])
        looser[name] = _changes(program, from_M[uses], to_M[uses], cost_M[uses], rate_M[uses])
    return Sensitivity(price, tighter, looser)


def _moves(program: Program, picks_G: Ints) -> tuple[Ints, Ints]:
    """Every change of one group: (columns left, columns taken)."""
    group_N, options = program.start_N[: program.options], program.options
    chosen_N = program.pick_N[:options] == picks_G[group_N]
    current_G = np.full(program.groups, -1)
    current_G[group_N[chosen_N]] = np.flatnonzero(chosen_N)
    to_M = np.flatnonzero((current_G[group_N] >= 0) & ~chosen_N)
    return current_G[group_N[to_M]], to_M


def _changes(
    program: Program, from_M: Ints, to_M: Ints, cost_M: Ints, rate_M: Floats
) -> tuple[Change, ...]:
    loss_M = program.loss_N[to_M] - program.loss_N[from_M]
    columns = program.start_N[to_M], program.pick_N[to_M], loss_M, cost_M, rate_M
    return tuple(Change(*row) for row in zip(*(column.tolist() for column in columns)))
