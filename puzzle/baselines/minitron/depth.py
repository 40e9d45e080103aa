"""Depth pruning: which layers go, of those runs that leave the last layer in its place.

Single layers that look unimportant are not so together, hence whole runs are judged (Minitron in
practice, 2408.11796, section 3.2): by their block influence, or by what the model without them does
to the perplexity of a text, or to the answers of the embedded accuracy set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Layers = tuple[int, ...]
Cost = Callable[[Layers], float]  # of a model of these layers; the less the better


def remaining(layers: int, count: int) -> list[Layers]:
    """Which layers may stay when a run of `count` goes; the first and the last always do.

    >>> remaining(4, 1)
    [(0, 2, 3), (0, 1, 3)]
    """
    starts = range(1, layers - count)
    whole = range(layers)
    if not count:
        return [tuple(whole)]
    return [(*whole[:start], *whole[start + count :]) for start in starts]


def least_missed(layers: int, count: int, cost: Cost) -> Layers:
    """The layers that stay when the cheapest run of `count` goes."""
    options = remaining(layers, count)
    return min(options, key=cost) if len(options) > 1 else options[0]


def turned_by(turns: torch.Tensor) -> Cost:
    """The block influence of the run that is missing.

    Args:
        turns: [L + 1, L + 1], `1 - E cos(h_i, h_j)`.
    """

    def cost(kept: Layers) -> float:
        gone = sorted(set(range(len(turns) - 1)) - set(kept))
        return float(turns[gone[0], gone[-1] + 1]) if gone else 0.0

    return cost
