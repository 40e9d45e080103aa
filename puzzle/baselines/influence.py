"""Block influence: the layers that turn the stream least are removed (ShortGPT, 2403.03853).

Legend: S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from puzzle import records
from puzzle.blocks.variant import NOTHING
from puzzle.menu import Choice, Menu
from puzzle.run import Run
from puzzle.swap import removed_runs


def influence(enter_STD: torch.Tensor, leave_STD: torch.Tensor) -> float:
    """`1 - E cos(h_i, h_j)`: how far layers i to j - 1 turn the stream, a mean over tokens."""
    cosine = F.cosine_similarity(enter_STD.float(), leave_STD.float(), dim=-1)
    return float(1 - cosine.mean())


def traced_influence(run: Run, layers: int) -> list[float]:
    """The influence of every layer of a traced parent on the scoring text."""
    names = [records.hidden("scoring", layer) for layer in range(layers + 1)]
    streams = (run.load_tensors(name)["h"] for name in names)
    found, enter = [], next(streams)
    for leave in streams:
        found.append(influence(enter, leave))
        enter = leave
    return found


def block_influence(menu: Menu, influences: Sequence[float]) -> list[Choice]:
    """The parent without its least influential layers, as few as the budget asks for.

    At every batch that a removal of all that may go can keep, least summed loss first.

    Args:
        influences: of every layer (`traced_influence`).
    """
    order = sorted(range(len(influences)), key=lambda layer: influences[layer])
    order = [layer for layer in order if NOTHING in menu.losses[layer]]
    found = []
    for batch in menu.prices.blocks:
        for count in range(len(order) + 1):
            gone = set(order[:count])
            blocks = [
                NOTHING if layer in gone else next(iter(options))
                for layer, options in enumerate(menu.losses)
            ]
            if menu.limits.allow(menu.serve(blocks, batch)):
                removed = [run for run in removed_runs(blocks) if run in menu.removals]
                found.append(menu.choice(blocks, batch, {"status": "block influence"}, removed))
                break
    return sorted(found, key=lambda choice: choice.loss)
