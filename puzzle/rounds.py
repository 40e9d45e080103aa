"""Rounds: look around the best child so far, and take a nearer one where there is one.

Scores around a child (around.py) hold in its neighborhood only, and how far that reaches nobody
knows beforehand. So the program is solved again inside regions of growing radius, and the best of
each is measured; where the nearest to the parent was found, more of the best are. The nearest of
all is the next round's center. It ends after the rounds asked for, or where none is nearer. Scores
come from half of the text, as all candidates are measured on the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from puzzle.around import Child, around
from puzzle.choose import choose
from puzzle.library import Library
from puzzle.menu import Choice, Menu, Region
from puzzle.run import fingerprint
from puzzle.swap import Blocks
from puzzle.trial import measured, trial

RADII = (1, 2, 3, 4, 6, 8, 12)  # layers that may change at once
OTHERS = 8  # children measured at the best radius
STEP = 2  # every second sequence is looked at


def further(library: Library, menu: Menu, first: Choice, rounds: int) -> list[Choice]:
    """The centers of all rounds after `first`, each nearer to the parent than the one before."""
    centers = [first]
    for seed in range(1, rounds):
        center = centers[-1]
        nearest = _round(library, menu, center, seed)
        if not measured(nearest) < measured(center):
            break
        centers.append(nearest)
    return centers[1:]


def _round(library: Library, menu: Menu, center: Choice, seed: int) -> Choice:
    """The nearest to the parent of the children around a center."""
    blocks = center.as_record()["blocks"]
    inputs = fingerprint("around on half of the text", menu.digest(), blocks, seed)
    space = [list(options) for options in menu.losses]
    child = Child(library, center.blocks, STEP)
    losses = around(child, space, seed=seed, inputs=inputs)
    near = replace(menu, losses=losses, removals={})
    tried = _measured(library, near, center, dict.fromkeys(RADII, 1))
    if tried:
        reach = sum(one != other for one, other in zip(tried[0].blocks, center.blocks))
        tried += _measured(library, near, center, {reach: OTHERS})
    return min([center, *tried], key=measured)


def _measured(
    library: Library, menu: Menu, center: Choice, counts: Mapping[int, int]
) -> list[Choice]:
    """So many of the best children within each radius, the center left out, nearest first."""
    found: dict[Blocks, Choice] = {}
    for radius, count in counts.items():
        inside = replace(menu, region=Region(center.blocks, radius))
        for choice in choose(inside, count + 1):
            found[choice.blocks] = replace(choice, loss=measured(center) + choice.loss)
    found.pop(center.blocks, None)
    return trial(library, list(found.values()))
