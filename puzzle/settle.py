"""Settle: exact scores for the picked blocks that need them, until the choice needs none.

Fisher scores are cheap and rank well, but understate large changes, and an optimizer picks just
what is understated. So: solve, score exactly what was picked and is in doubt, all of it in one
sweep, solve again. It ends, because nothing is scored twice.
"""

from __future__ import annotations

from puzzle.choose import choose
from puzzle.config import Doubt
from puzzle.exact import exact
from puzzle.library import Library
from puzzle.menu import Menu
from puzzle.score import Scores
from puzzle.swap import Swap, swaps


def settle(library: Library, menu: Menu, scores: Scores, doubt: Doubt) -> tuple[Menu, int]:
    """The menu with exact losses of all that its best child holds and is in doubt; their number.

    Args:
        doubt: `never`, `saturated` where the second order cannot be trusted, or every `picked` one.
    """
    known: dict[Swap, float] = {}
    while asked := _asked(library, menu.with_losses(known), scores, doubt) - known.keys():
        found = exact(library, sorted(asked, key=lambda swap: swap.layer))
        known |= {swap: score["kl"]["mean"] for swap, score in found.items()}
    return menu.with_losses(known), len(known)


def _asked(library: Library, menu: Menu, scores: Scores, doubt: Doubt) -> set[Swap]:
    if doubt == "never":
        return set()
    best = choose(menu)[0]
    picked = swaps(library.parent.blocks, best.blocks, best.removed)
    return {swap for swap in picked if doubt == "picked" or scores.of(swap).saturated}
