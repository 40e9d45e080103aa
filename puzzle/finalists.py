"""Finalists: the best children at several weights of FFN to attention losses, run for real.

A score is of one block in an otherwise whole parent. Attention layers back each other up, so each
alone seems cheap to lose while the others are there; what FFNs lose overlaps. So the sum of scores
understates children that lose much attention, and overstates those that lose FFN, by how much
differs from parent to parent. The program is solved at several weights, the best of each is
measured, and at the weight of the nearest to the parent more of the best are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from puzzle.blocks.variant import NOTHING, Block
from puzzle.choose import choose
from puzzle.library import Library
from puzzle.menu import Choice, Menu
from puzzle.swap import Blocks
from puzzle.trial import measured, trial

WEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25, 1.4, 2.0)  # of FFN losses; the sum itself first


def finalists(library: Library, menu: Menu, count: int) -> list[Choice]:
    """Up to `count` children with their measured KL, nearest to the parent first.

    The best by the sum of scores is among them, and this sum is the loss of each. Its proof is of
    the program at the weight that found it.
    """
    own = library.parent.blocks
    best = {weight: _best(menu, own, weight, 1)[0] for weight in WEIGHTS[:count]}
    tried = trial(library, _distinct(best.values()))
    weight = next(w for w, choice in best.items() if choice.blocks == tried[0].blocks)
    more = _best(menu, own, weight, 1 + count - len(tried)) if len(tried) < count else []
    known = {choice.blocks for choice in tried}
    tried += trial(library, [choice for choice in more if choice.blocks not in known])
    return sorted(tried, key=measured)


def weighed(menu: Menu, own: Blocks, weight: float) -> Menu:
    """The menu with what each block loses by its FFN times `weight`.

    That is what it loses beside the parent's attention; a run removed as one weighs what its layers
    weigh removed one by one.
    """
    losses = [_weighed(layer, kept, weight) for layer, kept in zip(menu.losses, own)]

    def share(run: tuple[int, int]) -> float:
        before, after = (
            sum(each[i][NOTHING] for i in range(*run)) for each in (menu.losses, losses)
        )
        return after / before if before else 1.0

    removals = {run: loss * share(run) for run, loss in menu.removals.items()}
    return replace(menu, losses=losses, removals=removals)


def _weighed(losses: Mapping[Block, float], kept: Block, weight: float) -> dict[Block, float]:
    def of_ffn(block: Block) -> float:
        if block.attention == kept.attention:
            return losses[block]
        return min(losses[block], losses.get(Block(kept.attention, block.ffn), 0.0))

    return {block: loss + (weight - 1) * of_ffn(block) for block, loss in losses.items()}


def _best(menu: Menu, own: Blocks, weight: float, count: int) -> list[Choice]:
    """The best at this weight, each with its loss by the scores as they are."""
    found = choose(weighed(menu, own, weight), count)
    return [menu.choice(c.blocks, c.prediction.batch, c.proof, c.removed) for c in found]


def _distinct(choices: Iterable[Choice]) -> list[Choice]:
    return list({choice.blocks: choice for choice in choices}.values())
