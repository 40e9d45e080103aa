"""Extremes of the same program: as many parameters as fit, whatever they are; only removals."""

from __future__ import annotations

from dataclasses import replace

from puzzle.blocks.variant import NoOp
from puzzle.choose import choose
from puzzle.menu import Choice, Menu


def max_parameters(menu: Menu) -> list[Choice]:
    """The child of most parameters within the budget, chosen without its scores.

    Raises:
        InfeasibleError: no child keeps the budget.
    """
    params = {block: cost.params for block, cost in next(iter(menu.prices.blocks.values())).items()}
    most = max(params.values())
    losses = [{block: float(most - params[block]) for block in layer} for layer in menu.losses]
    # runs of layers have losses of their own, which are not parameters
    largest = choose(replace(menu, losses=losses, removals={}, region=None))[0]
    return [_scored(menu, largest)]


def noop_only(menu: Menu) -> list[Choice]:
    """The best child whose halves are the parent's own or nothing.

    Raises:
        InfeasibleError: none keeps the budget.
    """
    losses = []
    for layer in menu.losses:
        own = next(iter(layer))
        losses.append(
            {
                block: loss
                for block, loss in layer.items()
                if block.attention in (own.attention, NoOp()) and block.ffn in (own.ffn, NoOp())
            }
        )
    return choose(replace(menu, losses=losses))


def _scored(menu: Menu, choice: Choice) -> Choice:
    """A choice that was made by other losses, with the menu's own."""
    return menu.choice(choice.blocks, choice.prediction.batch, choice.proof)
