"""Choose: one block per layer, the least summed loss under every limit of the budget.

The mixed-integer program of Puzzle (arXiv 2411.19146, section 4.3). All costs are sums over blocks
plus a constant for what lies outside the layers, so at a batch size b every limit is one linear
row; every b of the workload is bounded, and the best child over all b is kept. Costs enter as
integers (bytes, nanoseconds rounded up), so a child that the program accepts keeps its limits.

A run of layers may be removed as one, at a loss of its own: an option that spans groups. That it is
not removed layer by layer instead, at the sum of its layers' losses, is a rule added once an answer
breaks it, and the program is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from puzzle.blocks.variant import NOTHING, Block
from puzzle.budget import LIMITS
from puzzle.errors import InfeasibleError, PuzzleError
from puzzle.hardware.cost import Cost
from puzzle.hardware.throughput import Prediction
from puzzle.menu import Choice, Menu
from puzzle.solver import Problem, Rules, Solution, Span, solve_any
from puzzle.solver.problem import Ints
from puzzle.swap import Blocks, Stretch, removed_runs
from puzzle.units import show

NS = 1_000_000_000
ALIKE = 0.8  # of the layers may hold the same block in two finalists
NEXT_BEST = 1e-3  # of its loss that a further finalist may miss: all are measured anyway

# limit -> what a block takes of it, in whole bytes, parameters or nanoseconds
USES: dict[str, Callable[[Cost], int]] = {
    "memory": lambda cost: cost.memory_bytes,
    "params": lambda cost: cost.params,
    "ttft": lambda cost: math.ceil(cost.prefill_s * NS),
    "tpot": lambda cost: math.ceil(cost.decode_s * NS),
    "throughput": lambda cost: math.ceil(cost.total_s * NS),
}


def choose(menu: Menu, count: int = 1) -> list[Choice]:
    """The child of least summed loss that keeps the budget, then the next best that differ.

    Each further child differs from every earlier one in a fifth of its layers, or inside a region
    in half as many as may change where those are fewer; there may be fewer than `count`. The first
    is the best there is, further ones lose a thousandth more than the best left at most (their
    `proof` says so).

    Raises:
        InfeasibleError: no child keeps it; names the limit that binds and the cheapest child.
        PuzzleError: the solver ran out of time without an answer.
    """
    rooms = {batch: room_of(menu, batch) for batch in menu.prices.blocks}
    rooms = {batch: room for batch, room in rooms.items() if min(room.values()) >= 0}
    if not rooms:
        raise InfeasibleError(_why_infeasible(menu))
    problems = [_problem(menu, batch, room) for batch, room in rooms.items()]
    found: list[Choice] = []
    while len(found) < count:
        problems, best, solution = _solve(menu, problems, NEXT_BEST if found else 0.0)
        if solution.picks is None:
            break
        proof = {name: getattr(solution, name) for name in ("status", "proof", "gap", "seconds")}
        blocks, removed = _read(menu, problems[best], solution.picks)
        found.append(menu.choice(blocks, list(rooms)[best], proof, removed))
        problems = [problem.unlike(solution.picks, _alike(menu)) for problem in problems]
    if not found and solution.status == "infeasible":
        raise InfeasibleError(_why_infeasible(menu))
    if not found:
        raise PuzzleError(f"budget {menu.budget.name}: {solution.message}")
    return found


def _alike(menu: Menu) -> float:
    """The share of their layers that two children may have in common."""
    if menu.region is None:
        return ALIKE
    return max(ALIKE, 1 - max(1, menu.region.radius // 2) / len(menu.losses))


def room_of(menu: Menu, batch: int) -> dict[str, int]:
    """What each limit leaves for the blocks at this batch, in the units of USES."""
    allowed, new_tokens = menu.limits.stated(), menu.budget.workload.new_tokens
    if "ttft" in allowed:
        allowed["ttft"] *= NS
    if "tpot" in allowed:
        allowed["tpot"] *= new_tokens * NS
    if "throughput" in allowed:
        allowed["throughput"] = batch * new_tokens / allowed["throughput"] * NS
    outside = menu.prices.outside[batch]
    return {name: math.floor(value) - USES[name](outside) for name, value in allowed.items()}


def _solve(menu: Menu, problems: list[Problem], gap: float) -> tuple[list[Problem], int, Solution]:
    """The best answer, and the problems with every rule on joint removal that it took."""
    while True:
        best, solution = solve_any(problems, gap=gap)
        if solution.picks is None or not menu.removals:
            return problems, best, solution
        blocks, removed = _read(menu, problems[best], solution.picks)
        piecemeal = [run for run in removed_runs(blocks) if run not in removed]
        if not piecemeal:
            return problems, best, solution
        for run in piecemeal:
            problems = [_together(problem, menu, run) for problem in problems]


def _problem(menu: Menu, batch: int, room: dict[str, int]) -> Problem:
    costs = menu.prices.blocks[batch]

    def uses(name: str, options: Iterable[Block]) -> Ints:
        return np.array([USES[name](costs[block]) for block in options])

    spans = tuple(
        Span(
            start, stop, loss, {name: (stop - start) * USES[name](costs[NOTHING]) for name in room}
        )
        for (start, stop), loss in menu.removals.items()
    )
    problem = Problem(
        loss=[np.array(list(options.values())) for options in menu.losses],
        cost={name: [uses(name, options) for options in menu.losses] for name in room},
        limit=room,
        names=[[str(block) for block in options] for options in menu.losses],
        rules=Rules(spans=spans),
    )
    if menu.region is None:
        return problem
    center = menu.region.center
    changes = [
        [int(block != kept) for block in options] for options, kept in zip(menu.losses, center)
    ]
    spanned = [sum(kept != NOTHING for kept in center[slice(*run)]) for run in menu.removals]
    return _with_row(problem, "changes", (changes, spanned), menu.region.radius)


def _together(problem: Problem, menu: Menu, run: Stretch) -> Problem:
    """The problem where these layers are not all removed but by one option that spans them all."""
    start, stop = run
    layers = [
        [int(start <= layer < stop and block == NOTHING) for block in options]
        for layer, options in enumerate(menu.losses)
    ]
    spanned = [
        max(0, min(stop, end) - max(start, begin)) if not begin <= start < stop <= end else 0
        for begin, end in menu.removals
    ]
    return _with_row(
        problem, f"removal of {start} to {stop - 1}", (layers, spanned), stop - start - 1
    )


def _with_row(
    problem: Problem, name: str, row: tuple[Sequence[Sequence[int]], Sequence[int]], limit: int
) -> Problem:
    """The problem with one more cost: what each option takes of it, each span, and the limit."""
    options, spanned = row
    spans = tuple(
        replace(span, cost={**span.cost, name: cost})
        for span, cost in zip(problem.rules.spans, spanned)
    )
    return replace(
        problem,
        cost={**problem.cost, name: [np.array(costs) for costs in options]},
        limit={**problem.limit, name: limit},
        rules=replace(problem.rules, spans=spans),
    )


def _read(menu: Menu, problem: Problem, picks: Sequence[int]) -> tuple[Blocks, list[Stretch]]:
    """The blocks that were picked, and the runs removed as one."""
    blocks = tuple(
        NOTHING if pick < 0 else list(options)[pick] for options, pick in zip(menu.losses, picks)
    )
    spans = [problem.rules.spans[~pick] for pick in dict.fromkeys(picks) if pick < 0]
    return blocks, [(span.start, span.stop) for span in spans]


def _why_infeasible(menu: Menu) -> str:
    """One sentence: the limits that no child keeps, and how near the cheapest child comes."""
    stated = menu.limits.stated()
    cheapest = {name: _cheapest(menu, name) for name in stated}
    alone = [name for name in stated if menu.limits.shares(cheapest[name])[name] > 1]
    asked = []
    for name in alone or stated:
        field, unit = LIMITS[name]
        word = "at least" if name == "throughput" else "at most"
        reached = show(getattr(cheapest[name], field), unit)
        asked.append(
            f"{name} of {word} {show(stated[name], unit)}, "
            f"where the cheapest possible child has {reached}"
        )
    together = "" if alone else "; each can be kept alone, but not all together"
    return (
        f"budget {menu.budget.name} asks for {' and for '.join(asked)}{together}. "
        "Loosen the budget, or add cheaper blocks to space.attention and space.ffn"
    )


def _cheapest(menu: Menu, name: str) -> Prediction:
    """The child, at any batch, that takes least of one limit."""

    def at(batch: int) -> Prediction:
        costs = menu.prices.blocks[batch]
        blocks = [min(each, key=lambda block: USES[name](costs[block])) for each in menu.losses]
        return menu.serve(blocks, batch)

    return min(map(at, menu.prices.blocks), key=lambda child: menu.limits.shares(child)[name])
