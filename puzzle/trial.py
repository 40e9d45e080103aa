"""Trial: finalists run for real, and the one nearest to the parent wins.

Summed scores rank children well from afar, but many children of nearly equal sums differ in their
own KL, because errors of neighboring layers add up or cancel. So the best few by the program are
measured on the scoring split, in heats: after a quarter of the text and after half of it the nearer
half goes on. All meet the same text, so a small part of it already tells far ones from near ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from puzzle import records
from puzzle.library import Library
from puzzle.measure import kl, measure
from puzzle.menu import Choice
from puzzle.swap import Blocks

HEATS = (0.25, 0.5, 1.0)  # of the text, where each heat ends


def trial(library: Library, finalists: Sequence[Choice]) -> list[Choice]:
    """The finalists with their measured KL, nearest to the parent first.

    That of one that fell out is an estimate: what it has on its part of the text, and what the
    winner has more on the whole of it than on that part. It is never below the winner's.
    """
    standing = list(dict.fromkeys(choice.blocks for choice in finalists))
    kls: dict[Blocks, torch.Tensor] = dict.fromkeys(standing, torch.empty(0))
    sequences = len(library.run.load_tensors(records.tokens("scoring"))["tokens"])
    ends = sorted({math.ceil(share * sequences) for share in HEATS})
    for begin, end in zip([0, *ends], ends):
        for blocks, values in measure(library, standing, {"kl": kl}, part=slice(begin, end)):
            kls[blocks] = torch.cat([kls[blocks], values["kl"]])
        standing.sort(key=lambda blocks: float(kls[blocks].mean()))
        if end < sequences:
            standing = standing[: math.ceil(len(standing) / 2)]

    def estimate(blocks: Blocks) -> float:
        own, best = kls[blocks], kls[standing[0]]
        return float(own.mean() + best.mean() - best[: len(own)].mean())

    tried = [replace(choice, measured_kl=estimate(choice.blocks)) for choice in finalists]
    return sorted(tried, key=measured)


def measured(choice: Choice) -> float:
    """The KL measured for a choice that has been tried."""
    assert choice.measured_kl is not None
    return choice.measured_kl
