"""Log-log interpolation in tables of seconds, which says when it leaves what was measured.

A table is nested mappings from sizes to sizes to seconds, as deep as there are coordinates; not
every combination needs to be there.

>>> batches = {1: 1e-3, 4: 2e-3}
>>> seconds, beyond = lookup(batches, 2)
>>> round(seconds, 6), beyond
(0.001414, False)
>>> lookup({128: {1: 3e-3}, 512: {1: 3e-3}}, 1024, 1)
(0.003, True)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

Table = Mapping[float, Any]  # size -> Table, or size -> seconds in the last place
NEAR = 1e-6


def lookup(table: Table, size: float, *sizes: float) -> tuple[float, bool]:
    """Seconds at these sizes, and whether any of them lies beyond the table.

    Between two sizes the slope in log-log is theirs. Beyond the last it goes on, within reason: it
    never falls, is at most linear in the last coordinate (batch, rows) and quadratic in the others
    (length). Beyond the only one it grows linearly, as so many passes one after the other do. Below
    the first it stays, since what remains of a small kernel is its launch.
    """
    keys = sorted(table)
    below, above = _neighbours(keys, size)
    low, low_beyond = _at(table[below], sizes)
    if below == above:
        times = max(1.0, size / below) if len(keys) == 1 else 1.0
        return low * times, low_beyond or abs(size / below - 1) > NEAR
    high, high_beyond = _at(table[above], sizes)
    slope = math.log(high / low) / math.log(above / below)
    beyond = size > above * (1 + NEAR)
    if beyond:
        steepest = 2.0 if sizes else 1.0
        return high * (size / above) ** min(max(0.0, slope), steepest), True
    return low * (size / below) ** slope, low_beyond or high_beyond


def _at(value: Any, sizes: tuple[float, ...]) -> tuple[float, bool]:
    return lookup(value, *sizes) if sizes else (float(value), False)


def _neighbours(keys: list[float], size: float) -> tuple[float, float]:
    """The measured sizes around one; twice the same where it is met, or below all."""
    place = bisect_right(keys, size * (1 + NEAR))
    if place == 0 or len(keys) == 1:
        return keys[0], keys[0]
    if abs(keys[place - 1] / size - 1) <= NEAR:
        return keys[place - 1], keys[place - 1]
    if place == len(keys):
        return keys[-2], keys[-1]
    return keys[place - 1], keys[place]
