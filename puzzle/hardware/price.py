"""The price list of a search: what every block costs at every batch, and what lies outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from puzzle.blocks.variant import Block
from puzzle.budget import Budget
from puzzle.export.targets import served
from puzzle.hardware.cost import Cost
from puzzle.hardware.roofline import block_cost, outside_cost
from puzzle.shape import Shape


@dataclass(frozen=True)
class Prices:
    """`blocks[batch][block]` and `outside[batch]`: costs at one workload on one device."""

    blocks: dict[int, dict[Block, Cost]]
    outside: dict[int, Cost]

    def total(self, blocks: Iterable[Block], batch: int) -> Cost:
        """What a whole model costs whose layers hold `blocks`."""
        return sum((self.blocks[batch][block] for block in blocks), self.outside[batch])

    def rows(self) -> list[dict[str, Any]]:
        """One row a batch and block (`outside` for the rest of the model), as tables want them."""
        return [
            {"batch": batch, "block": str(block), **asdict(cost)}
            for batch, costs in self.blocks.items()
            for block, cost in [("outside", self.outside[batch]), *costs.items()]
        ]


def price(shape: Shape, family: str, space: Sequence[Sequence[Block]], budget: Budget) -> Prices:
    """Price every block of the space by roofline, as the serving format will hold it.

    Raises:
        PuzzleError: the workload is longer than the parent's positions.
    """
    workload, device = budget.workload, budget.device
    workload.check_positions(shape.max_positions)
    blocks = dict.fromkeys(block for layer in space for block in layer)

    def cost(block: Block, batch: int) -> Cost:
        return block_cost(
            shape, served(family, block), workload=workload, batch=batch, device=device
        )

    prices: dict[int, dict[Block, Cost]] = {
        batch: {block: cost(block, batch) for block in blocks} for batch in workload.batches
    }
    outside = {
        batch: outside_cost(shape, workload=workload, batch=batch, device=device)
        for batch in workload.batches
    }
    return Prices(prices, outside)
