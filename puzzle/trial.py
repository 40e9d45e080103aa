"""Trial: finalists run for real, and the one nearest to the parent wins.

Summed scores rank children well from afar, but many children of nearly equal sums differ in their
own KL, because errors of neighboring layers add up or cancel. So the best few by the program are
measured on the scoring split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puzzle.library import Library
from puzzle.measure import kl, measure
from puzzle.menu import Choice


def trial(library: Library, finalists: Sequence[Choice]) -> list[Choice]:
    """The finalists with their measured KL, nearest to the parent first."""
    kls = dict(measure(library, [choice.blocks for choice in finalists], {"kl": kl}))
    measured = [
        replace(choice, measured_kl=float(kls[choice.blocks]["kl"].mean())) for choice in finalists
    ]
    return sorted(measured, key=lambda choice: choice.measured_kl or 0.0)
