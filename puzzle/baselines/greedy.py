"""Greedy and random: children filled in one layer after another, within what the budget leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from puzzle.blocks.variant import Block
from puzzle.choose import USES, room_of
from puzzle.hardware.cost import Cost
from puzzle.menu import Choice, Menu

Uses = dict[str, float]  # limit -> how much of it, in the units of `choose.USES`


@dataclass(frozen=True)
class _Filling:
    """The layers still open at one batch, and what the blocks placed so far leave of each limit."""

    menu: Menu
    costs: dict[Block, Cost]
    open: tuple[int, ...]
    left: Uses

    def uses(self, block: Block) -> Uses:
        return {name: USES[name](self.costs[block]) for name in self.left}

    def least(self, layer: int) -> Uses:
        """The least that any block of a layer takes of each limit."""
        each = [self.uses(block) for block in self.menu.losses[layer]]
        return {name: min(uses[name] for uses in each) for name in self.left}

    def affordable(self, layer: int) -> list[Block]:
        """The blocks that leave every other open layer its least; if none does, all."""
        others = [self.least(other) for other in self.open if other != layer]
        limit = {name: left - sum(o[name] for o in others) for name, left in self.left.items()}
        return self.within(layer, limit) or list(self.menu.losses[layer])

    def within(self, layer: int, limit: Uses) -> list[Block]:
        """The blocks of a layer that take no more than this."""
        return [
            block
            for block in self.menu.losses[layer]
            if all(use <= limit[name] for name, use in self.uses(block).items())
        ]

    def place(self, layer: int, block: Block) -> _Filling:
        left = {name: left - self.uses(block)[name] for name, left in self.left.items()}
        return _Filling(self.menu, self.costs, tuple(o for o in self.open if o != layer), left)


Pick = Callable[[_Filling, int], Block]


def greedy(menu: Menu) -> list[Choice]:
    """The child of every batch that keeps the limits, least summed loss first.

    Layers whose losses spread most choose first. Each takes its best block within an equal share of
    what is left, and what it saves is shared by those after it (arXiv 2411.19146, section 8.1).
    """
    order = sorted(
        range(len(menu.losses)),
        key=lambda layer: max(menu.losses[layer].values()) - min(menu.losses[layer].values()),
        reverse=True,
    )

    def pick(filling: _Filling, layer: int) -> Block:
        losses = menu.losses[layer]
        share = {name: left / len(filling.open) for name, left in filling.left.items()}
        options = filling.within(layer, share) or filling.affordable(layer)
        return min(options, key=lambda block: losses[block])

    return _children(menu, [order], pick, {"status": "greedy"})


def random_child(menu: Menu, *, seed: int, tries: int = 16) -> list[Choice]:
    """Children of blocks drawn evenly within what the budget leaves, least summed loss first.

    Up to `tries` of them a batch; layers are filled in random order.
    """
    draw = random.Random(seed)
    orders = [draw.sample(range(len(menu.losses)), len(menu.losses)) for _ in range(tries)]
    proof = {"status": "random", "seed": seed}
    return _children(menu, orders, lambda f, layer: draw.choice(f.affordable(layer)), proof)


def _children(
    menu: Menu, orders: Sequence[Sequence[int]], pick: Pick, proof: dict[str, Any]
) -> list[Choice]:
    found = []
    for batch in menu.prices.blocks:
        for order in orders:
            picked = _fill(menu, batch, order, pick)
            blocks = [picked[layer] for layer in sorted(picked)]
            if menu.limits.allow(menu.serve(blocks, batch)):
                found.append(menu.choice(blocks, batch, proof))
    return sorted(found, key=lambda choice: choice.loss)


def _fill(menu: Menu, batch: int, order: Sequence[int], pick: Pick) -> dict[int, Block]:
    costs, left = menu.prices.blocks[batch], dict(room_of(menu, batch))
    filling, picked = _Filling(menu, costs, tuple(order), {**left}), {}
    for layer in order:
        picked[layer] = pick(filling, layer)
        filling = filling.place(layer, picked[layer])
    return picked
