"""Settle: exact scores for the picked blocks that need them, until the choice needs none.

Fisher scores are cheap and rank well, but understate large changes, and an optimizer picks just
what is understated. So: solve, score exactly what was picked and is in doubt, all of it in one
sweep, solve again. It ends, because nothing is scored twice.

Where every pick is in doubt, what is overstated would never be picked. So what has no exact score
yet is taken at a hopeful one: unless an exact score lies below even that, the choice that needs
nothing more is the best of all in exact scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from puzzle.choose import choose
from puzzle.config import Doubt
from puzzle.exact import exact
from puzzle.library import Library
from puzzle.menu import Menu
from puzzle.score import Scores
from puzzle.swap import Swap, swaps

HOPE = 0.75  # of a score: a standard deviation of scores over exact ones below (scoring.json)
MOST = 4  # exact scores, by the number of layers


def settle(
    library: Library, menu: Menu, scores: Scores, doubt: Doubt
) -> tuple[Menu, dict[Swap, float]]:
    """The menu with exact losses of all that its best child holds and is in doubt; these losses.

    Args:
        doubt: `never`, `saturated` where the second order cannot be trusted, or every `picked` one.
    """
    known: dict[Swap, float] = {}
    while asked := _asked(library, menu, known, scores, doubt) - known.keys():
        found = exact(library, sorted(asked, key=lambda swap: swap.layer))
        known |= {swap: score["kl"]["mean"] for swap, score in found.items()}
        if len(known) >= MOST * len(menu.losses):
            break
    return menu.with_losses(known), known


def _asked(
    library: Library, menu: Menu, known: Mapping[Swap, float], scores: Scores, doubt: Doubt
) -> set[Swap]:
    """What the best child holds and is in doubt."""
    if doubt == "never":
        return set()
    hoped = _hopeful(menu) if doubt == "picked" else menu
    best = choose(hoped.with_losses(known))[0]
    picked = swaps(library.parent.blocks, best.blocks, best.removed)
    return {swap for swap in picked if doubt == "picked" or scores.of(swap).saturated}


def _hopeful(menu: Menu) -> Menu:
    losses = [{block: HOPE * loss for block, loss in layer.items()} for layer in menu.losses]
    removals = {run: HOPE * loss for run, loss in menu.removals.items()}
    return replace(menu, losses=losses, removals=removals)
