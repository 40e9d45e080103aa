"""The backend `auto`: bound, fix, enumerate what is left; a ready-made solver only for the rest.

The linear relaxation says how far each column lies above the bound. A dynamic program looks for
answers within a width of the bound, over the few columns that near; the width grows until an
answer is found and proven, so nothing is enumerated that the proof does not need. What the largest
beam cannot enumerate goes to a mixed-integer solver.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from puzzle.solver.dynamic import Search
from puzzle.solver.milp import Answer, breaks, cp_sat
from puzzle.solver.polish import polished
from puzzle.solver.presolve import binding, fitting, reduce, undominated
from puzzle.solver.problem import Floats, Ints
from puzzle.solver.program import Program
from puzzle.solver.relax import Relaxation, relax

FIRST_COLUMNS = 40  # columns beyond one a group in the first, narrowest search
WIDER = 1.4  # from one search to the next, once there is an answer to approach
BEAM, GROWTH, LARGEST = 1000, 8, 512_000  # states a group
HOPELESS = 8  # times as far from its target as a beam came: not worth a larger one
FAILURES = 3000  # exchanges in a row that improve nothing, before an answer is left as it is
ENUMERATION = 0.3  # of the time for enumeration, before the rest goes to a ready-made solver
EXPANSIONS = 8_000_000  # states times options of a group, at most


@dataclass(frozen=True, eq=False)
class Bounded:
    """A program without idle rows and columns, and its relaxation; `columns_N` are the original's.

    The relaxation is None where a limit lies below what the cheapest answer needs.
    """

    program: Program
    columns_N: Ints
    relaxation: Relaxation | None

    @property
    def bound(self) -> float:
        """A lower bound on every answer's loss; infinite where there is no answer."""
        if self.relaxation is None or self.relaxation.infeasible:
            return math.inf
        return self.relaxation.bound

    @property
    def useful_N(self) -> Ints | None:
        """The columns that solved the relaxation, in the original program."""
        return None if self.relaxation is None else self.columns_N[self.relaxation.useful_N]


def bounded(program: Program, start_N: Ints | None = None) -> Bounded:
    """Presolve and solve the linear relaxation, from columns of a similar program's if given."""
    columns_N = fitting(program)
    if columns_N is None:
        return Bounded(program, np.arange(program.columns), None)
    if start_N is not None:
        start_N = np.flatnonzero(np.isin(columns_N, start_N))
    smaller = binding(program.keep(columns_N) if len(columns_N) < program.columns else program)
    return Bounded(smaller, columns_N, relax(smaller, start_N))


def finish(start: Bounded, *, deadline: float, gap: float, cutoff: float = math.inf) -> Answer:
    """The best columns of loss below `cutoff`; None with a bound at the cutoff if there are none.

    `gap` is relative: the search may stop that near to the bound.
    """
    if math.isinf(start.bound) or start.relaxation is None:
        return Answer(None, math.inf, "lagrangian")
    now = time.perf_counter()
    until = now + ENUMERATION * (deadline - now) if math.isfinite(deadline) else deadline
    answer = enumerated(start.program, start.relaxation, deadline=until, gap=gap, cutoff=cutoff)
    if answer.columns is not None and breaks(start.program, answer.columns):
        answer = Answer(None, answer.bound, "none")  # too many names: the search ignores them
    if answer.proof == "none" and time.perf_counter() < deadline:
        answer = _mixed_integer(start, answer, deadline, gap, cutoff)
    if answer.columns is None:
        return answer
    return replace(answer, columns=start.columns_N[answer.columns])


def enumerated(
    program: Program,
    relaxation: Relaxation,
    *,
    deadline: float,
    gap: float,
    cutoff: float = math.inf,
    largest: int = LARGEST,
) -> Answer:
    """Deepening search by dynamic programming; proof `none` where the largest beam was not enough.

    Limits on names are ignored: the bound holds with them, the columns may break them.
    """
    least, most = relaxation.bound, -program.paths(-program.loss_N[None])[1][0, 0]
    rounding = _rounding(program, relaxation)
    allowed = partial(_allowed, rounding, gap)
    columns, loss, bound = None, cutoff, least
    prices_KR = relaxation.multiplier_R[None]
    width, beam, proven = _first_width(program, relaxation), BEAM, False
    while not proven and time.perf_counter() < deadline:
        ceiling = loss - allowed(loss)
        target = min(least + width, ceiling) if least + width <= most else ceiling
        reduced = reduce(program, relaxation.excess_N, target - least)
        search = Search(reduced.program, prices_KR, target - reduced.loss)
        ample = min(largest, EXPANSIONS // search.widest)
        beam = min(beam, ample)
        found = search.run(beam, deadline)
        prices_KR = search.prices.multiplier_KR
        # The search's cutoff is on bounds: what it finds may still lose more than the best known.
        if found.columns is not None and found.loss + reduced.loss < loss:
            columns, loss = reduced.original(found.columns), found.loss + reduced.loss
        reached = min(found.lost + reduced.loss, target)
        bound = max(bound, reached)
        proven = bound >= loss - allowed(loss) or bound == math.inf
        if reached < target and not proven:
            hopeless = beam > BEAM and target - least > HOPELESS * (reached - least)
            nearer = loss - allowed(loss) < target - rounding  # a better answer: less to search
            if hopeless or (beam == ample and not nearer):
                break
            beam *= 2 if columns is None else GROWTH
        if reached >= target or columns is None:
            width *= 2 if columns is None else WIDER
    if not proven:
        return Answer(columns, min(bound, loss), "none")
    by_bound = columns is not None and loss - least <= allowed(loss)
    return Answer(columns, min(bound, loss) if gap else loss, "lagrangian" if by_bound else "dp")


def _allowed(rounding: float, gap: float, loss: float) -> float:
    """How far the bound may stay below a loss that counts as proven."""
    return max(rounding, gap * abs(loss)) if math.isfinite(loss) else 0.0


def _first_width(program: Program, relaxation: Relaxation) -> float:
    """The excess within which lie one column a group and `FIRST_COLUMNS` more; not next to zero.

    Where losses follow costs nearly every column lies at the bound, and no answer does.
    """
    count = min(program.groups + FIRST_COLUMNS, program.columns) - 1
    width = float(np.partition(relaxation.excess_N, count)[count])
    least = 1e-3 * (program.spread or 1.0) / program.groups
    return max(width, least, 1e-12 * abs(relaxation.bound))


def _rounding(program: Program, relaxation: Relaxation) -> float:
    """What sums of losses in float64 may be wrong by."""
    priced = float(relaxation.multiplier_R @ np.abs(program.limit_R.astype(np.float64)))
    chosen_N = relaxation.excess_N <= 0
    return 1e-13 * (abs(relaxation.bound) + priced + float(np.abs(program.loss_N[chosen_N]).sum()))


def _mixed_integer(
    start: Bounded, answer: Answer, deadline: float, gap: float, cutoff: float
) -> Answer:
    """Close what enumeration left by CP-SAT, over the columns below the best loss.

    In turn with `polished`, which uses up slack that neither finds a use for.
    """
    assert start.relaxation is not None
    program, relaxation = start.program, start.relaxation
    if answer.columns is not None:
        columns_N = _polished(program, relaxation.multiplier_R, answer.columns, deadline, share=0.5)
        answer = replace(answer, columns=columns_N)
    best = cutoff if answer.columns is None else math.fsum(program.loss_N[answer.columns])
    near_N = np.flatnonzero(relaxation.excess_N <= best - relaxation.bound)
    near_N = near_N[undominated(program.keep(near_N))]
    smaller = program.keep(near_N)
    hint_N = None if answer.columns is None else np.flatnonzero(np.isin(near_N, answer.columns))
    left_s = deadline - time.perf_counter()
    claim = cp_sat(smaller, time_limit_s=0.5 * left_s, gap=gap, hint_N=hint_N)
    bound = max(answer.bound, min(claim.bound, best))
    if claim.columns is not None and math.fsum(smaller.loss_N[claim.columns]) < best:
        best = math.fsum(smaller.loss_N[claim.columns])
        answer = replace(answer, columns=near_N[claim.columns])
    close = max(_rounding(program, relaxation), max(gap, 1e-9) * abs(best))
    if bound >= best - close or bound == math.inf:
        return Answer(answer.columns, min(bound, best), "mip:cp-sat")
    if answer.columns is None or not np.isin(answer.columns, near_N).all():
        return replace(answer, bound=bound)
    inside_N = np.searchsorted(near_N, answer.columns)
    columns_N = near_N[_polished(smaller, relaxation.multiplier_R, inside_N, deadline, share=1.0)]
    return Answer(columns_N, min(bound, math.fsum(program.loss_N[columns_N])), "none")


def _polished(
    program: Program, multiplier_R: Floats, columns_N: Ints, deadline: float, *, share: float
) -> Ints:
    """Polished for at most this share of the time left."""
    now = time.perf_counter()
    until = now + share * max(0.0, deadline - now)
    return polished(program, multiplier_R, columns_N, deadline=until, failures=FAILURES)
