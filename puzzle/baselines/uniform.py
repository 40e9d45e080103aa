"""Uniform: the same block in every layer, the best one that keeps the budget."""

from __future__ import annotations

from puzzle.menu import Choice, Menu


def uniform(menu: Menu) -> Choice | None:
    """The block of least summed loss that all layers may hold and whose model keeps the limits.

    A layer that may not hold it keeps the parent's, the first of its choices. None where no block
    keeps the limits.
    """
    kept = []
    for block in dict.fromkeys(block for options in menu.losses for block in options):
        blocks = [block if block in options else next(iter(options)) for options in menu.losses]
        served = [menu.serve(blocks, batch) for batch in menu.prices.blocks]
        if allowed := [prediction for prediction in served if menu.limits.allow(prediction)]:
            fastest = max(allowed, key=lambda prediction: prediction.tokens_per_s)
            kept.append(menu.choice(blocks, fastest.batch, {"status": "optimal among uniform"}))
    return min(kept, key=lambda choice: choice.loss, default=None)
