"""Lagrangian bounds of what is left of a program: multipliers learned from the states met.

One set of multipliers bounds well only states whose rest is near the one it was made for. So
where states pile up, the linear program of what a sampled state has left is solved; its duals bound
that state's many neighbors too, and a few sets exclude nearly all states that a linear program of
their own would.

Legend: K sets of multipliers, R rows, G groups, S states, N columns.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program
from puzzle.solver.relax import PENALTY, Master


class Prices:
    """Sets of multipliers and their least completions `after_KG`, rounded down."""

    def __init__(self, program: Program, multiplier_KR: Floats) -> None:
        self.program = program
        self.multiplier_KR = multiplier_KR
        self.after_KG = self._after(multiplier_KR)

    def bounds(
        self, loss_S: Floats, rest_SR: Ints | Floats, group: int, k: int | slice = slice(None)
    ) -> Floats:
        """What states that have reached this group lose at least in the end, (S, K) or (S,)."""
        over_KS = self.after_KG[k, group, None] + loss_S - self.multiplier_KR[k] @ rest_SR.T
        return over_KS.T

    def learn(self, rest_R: Ints, group: int) -> None:
        """Add the multipliers that bound best a state with this rest."""
        price_KR = self._master.price(rest_R, group)[None]
        self.multiplier_KR = np.vstack([self.multiplier_KR, price_KR])
        self.after_KG = np.vstack([self.after_KG, self._after(price_KR)])

    @cached_property
    def _master(self) -> Master:
        master = Master(self.program, np.arange(self.program.columns))
        master.penalize(PENALTY)
        return master

    def _after(self, multiplier_KR: Floats) -> Floats:
        program = self.program
        value_KN = program.loss_N + multiplier_KR @ program.cost_RN
        priced_K = multiplier_KR @ np.abs(program.limit_R.astype(np.float64))
        return program.paths(value_KN)[1] - 1e-13 * priced_K[:, None]
