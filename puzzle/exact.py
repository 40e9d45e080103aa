"""Exact scores: what replacing one parent layer, or removing a run of layers, really costs.

Each score is a child that differs from the parent in one place, run to the end (measure.py), so it
holds at any size of change. It costs the rest of the model where a Fisher score costs one layer,
hence it is for the few blocks that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puzzle import records
from puzzle.library import Library
from puzzle.measure import Values, measure
from puzzle.run import fingerprint
from puzzle.spread import std_error
from puzzle.swap import Swap

AT_ONCE = 32  # children between two savings


def exact(library: Library, swaps: Sequence[Swap]) -> dict[Swap, dict[str, dict[str, float]]]:
    """Mean and standard error over sequences of every metric of every swap, from records.

    What is not recorded for this library and scoring text is measured first.
    """
    run, own = library.run, library.parent.blocks
    missing = [
        swap for swap in dict.fromkeys(swaps) if not run.fresh(_record(swap), _made(library, swap))
    ]
    missing.sort(key=lambda swap: swap.layer)
    for first in range(0, len(missing), AT_ONCE):
        by_child = {swap.child(own): swap for swap in missing[first : first + AT_ONCE]}
        for child, values in measure(library, list(by_child)):
            swap = by_child[child]
            run.save(_record(swap), _means(values), _made(library, swap))
    return {swap: run.load(_record(swap)) for swap in swaps}


def _record(swap: Swap) -> str:
    return records.exact(swap.layer, swap.blocks)


def _made(library: Library, swap: Swap) -> str:
    """What a swap's score depends on: the scoring text's trace, and the halves it is made of."""
    run = library.run
    names = {name for block in swap.blocks for name in library.sources(swap.layer, block)}
    prints = [run.fingerprint_of(name) for name in sorted(names)]
    return fingerprint("exact", run.fingerprint_of(records.hidden("scoring", 0)), prints)


def _means(values: Values) -> dict[str, dict[str, Any]]:
    return {
        name: {"mean": float(each.mean()), "std_error": std_error(each)}
        for name, each in values.items()
    }
