"""Rounds: look around the best child so far, and take a nearer one where there is one.

Scores around a child (around.py) hold in its neighborhood only, so the program is solved again
inside regions of growing radius, and the best of each are measured: the nearest to the parent is
the next round's center. It ends after the rounds asked for, or where none is nearer.
"""

from __future__ import annotations

from dataclasses import replace

from puzzle.around import Child, around
from puzzle.choose import choose
from puzzle.config import Scoring
from puzzle.library import Library
from puzzle.menu import Choice, Menu, Region
from puzzle.run import fingerprint
from puzzle.swap import Blocks
from puzzle.trial import trial

RADII = (1, 2, 4, 8)  # layers that may change at once
AT_EACH = 2  # children measured


def further(
    library: Library, menu: Menu, first: Choice, rounds: int, scoring: Scoring
) -> list[Choice]:
    """The centers of all rounds after `first`, each nearer to the parent than the one before."""
    centers = [first]
    for seed in range(1, rounds):
        center = centers[-1]
        nearest = _round(library, menu, center, (scoring.samples, seed))
        if not (nearest.measured_kl or 0.0) < (center.measured_kl or 0.0):
            break
        centers.append(nearest)
    return centers[1:]


def _round(library: Library, menu: Menu, center: Choice, draws: tuple[int, int]) -> Choice:
    """The nearest to the parent of the children around a center."""
    samples, seed = draws
    inputs = fingerprint("around", menu.digest(), center.as_record()["blocks"], draws)
    space = [list(options) for options in menu.losses]
    child = Child(library, center.blocks)
    losses = around(child, space, samples=samples, seed=seed, inputs=inputs)
    found: dict[Blocks, Choice] = {}
    for radius in RADII:
        region = Region(center.blocks, radius)
        near = replace(menu, losses=losses, removals={}, region=region)
        for choice in choose(near, AT_EACH):
            loss = (center.measured_kl or 0.0) + choice.loss
            found[choice.blocks] = replace(choice, loss=loss)
    return trial(library, list(found.values()))[0]
