"""Uniform: the same block in every layer."""

from __future__ import annotations

from puzzle.menu import Choice, Menu


def uniform(menu: Menu) -> list[Choice]:
    """Every child of one block that keeps the limits, least summed loss first.

    A layer that may not hold the block keeps the parent's, the first of its choices.
    """
    kept = []
    for block in dict.fromkeys(block for options in menu.losses for block in options):
        blocks = [block if block in options else next(iter(options)) for options in menu.losses]
        served = [menu.serve(blocks, batch) for batch in menu.prices.blocks]
        if allowed := [prediction for prediction in served if menu.limits.allow(prediction)]:
            fastest = max(allowed, key=lambda prediction: prediction.tokens_per_s)
            kept.append(menu.choice(blocks, fastest.batch, {"status": "enumerated"}))
    return sorted(kept, key=lambda choice: choice.loss)
