"""Rounds: look around the best child so far, and take a nearer one where there is one.

Scores around a child (around.py) hold in its neighborhood only, and how far that reaches nobody
knows beforehand. So the program is solved again inside regions of growing radius, and the best of
each is measured; then once more by the scores as these measurements correct them (posterior.py).
The nearest of all is the next round's center. It ends after the rounds asked for, or where none is
nearer. Scores come from half of the text, as all candidates are measured on the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puzzle.around import Child, around
from puzzle.choose import choose
from puzzle.library import Library
from puzzle.menu import Choice, Menu, Region
from puzzle.posterior import posterior
from puzzle.run import fingerprint
from puzzle.trial import measured, trial

RADII = (1, 2, 3, 4, 6, 8, 12)  # layers that may change at once
TURNS = 2  # of measuring one child within each radius
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
    losses = around(Child(library, center.blocks, STEP), space, seed=seed, inputs=inputs)
    tried: list[Choice] = []
    for _ in range(TURNS):
        near = replace(menu, losses=posterior(losses, center, tried), removals={})
        tried += trial(library, _candidates(near, center, tried))
    return min([center, *tried], key=measured)


def _candidates(menu: Menu, center: Choice, tried: Sequence[Choice]) -> list[Choice]:
    """The best child within each radius that was not tried yet."""
    known = {center.blocks, *(choice.blocks for choice in tried)}
    found = []
    for radius in RADII:
        inside = replace(menu, region=Region(center.blocks, radius))
        fresh = [each for each in choose(inside, 1 + len(known)) if each.blocks not in known]
        for choice in fresh[:1]:
            known.add(choice.blocks)
            found.append(replace(choice, loss=measured(center) + choice.loss))
    return found
