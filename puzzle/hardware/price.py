"""The price list of a search: what every block costs at every batch, and what lies outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from puzzle.blocks.variant import Block
from puzzle.budget import Budget
from puzzle.export.targets import Target, served
from puzzle.hardware import source as sources
from puzzle.hardware.cost import Cost
from puzzle.hardware.modeled import source_of
from puzzle.hardware.roofline import block_cost, outside_cost
from puzzle.hardware.source import EXTRAPOLATED, Source
from puzzle.hardware.tables import Measured, open_source
from puzzle.shape import Shape

DATA_SHEET = "data sheet"
ROOFLINE = frozenset({"roofline of static batches"})
Priced = tuple[Cost, frozenset[str]]  # a cost, and where its seconds come from
Ask = Callable[[Block | None, int], Priced]  # of a block, or what lies outside, and a batch


@dataclass(frozen=True)
class Prices:
    """`blocks[batch][block]` and `outside[batch]`: costs at one workload on one device."""

    blocks: dict[int, dict[Block, Cost]]
    outside: dict[int, Cost]
    origins: dict[tuple[int, str], frozenset[str]] = field(default_factory=dict)

    def total(self, blocks: Iterable[Block], batch: int) -> Cost:
        """What a whole model costs whose layers hold `blocks`."""
        return sum((self.blocks[batch][block] for block in blocks), self.outside[batch])

    def rows(self) -> list[dict[str, Any]]:
        """One row a batch and block (`outside` for the rest of the model), as tables want them."""
        return [
            {
                "batch": batch,
                "block": str(block),
                **asdict(cost),
                "source": ", ".join(sorted(self.origins.get((batch, str(block)), ROOFLINE))),
            }
            for batch, costs in self.blocks.items()
            for block, cost in [("outside", self.outside[batch]), *costs.items()]
        ]


def cost_source(costs: str, shape: Shape, budget: Budget) -> Source | None:
    """Where a budget's seconds come from: None is the device's data sheet, block by block.

    Raises:
        PuzzleError: tables that are not there, or not of this model or device.
    """
    if costs == DATA_SHEET:
        return None
    return open_source(costs, shape, budget.workload, budget.hardware, budget.gpus)


def price(
    shape: Shape,
    family: str,
    space: Sequence[Sequence[Block]],
    budget: Budget,
    source: Source | None = None,
    target: Target = "vllm",
) -> Prices:
    """Price every block of the space as `target` will hold it, in static batches.

    Seconds are the static roofline's on one GPU and the closer one's on several (`modeled.py`),
    unless a source is given. A warning says how many of them lie beyond
    what that source measured; `Prices.rows` says which.

    Raises:
        PuzzleError: the workload is longer than the parent's positions.
    """
    budget.workload.check_positions(shape.max_positions)
    source = source or source_of(shape, budget)
    ask = _roofline(shape, budget) if source is None else _of(source)
    blocks = dict.fromkeys(block for layer in space for block in layer)
    inside: dict[int, dict[Block, Cost]] = {batch: {} for batch in budget.workload.batches}
    outside: dict[int, Cost] = {}
    origins: dict[tuple[int, str], frozenset[str]] = {}
    for batch, costs in inside.items():
        outside[batch], origins[batch, "outside"] = ask(None, batch)
        for block in blocks:
            costs[block], origins[batch, str(block)] = ask(served(family, block, target), batch)
    _warn_beyond(origins)
    if isinstance(source, Measured):
        _warn_unmeasured(origins, source.name)
    return Prices(inside, outside, origins)


def _roofline(shape: Shape, budget: Budget) -> Ask:
    """The static roofline, which the search uses unless told otherwise."""

    def ask(block: Block | None, batch: int) -> Priced:
        workload, device = budget.workload, budget.device
        if block is None:
            cost = outside_cost(shape, workload=workload, batch=batch, device=device)
        else:
            cost = block_cost(shape, block, workload=workload, batch=batch, device=device)
        return cost, ROOFLINE

    return ask


def _of(source: Source) -> Ask:
    def ask(block: Block | None, batch: int) -> Priced:
        if block is None:
            return sources.outside_cost(source, batch)
        return sources.block_cost(source, block, batch)

    return ask


def _warn_unmeasured(origins: dict[tuple[int, str], frozenset[str]], table: str) -> None:
    """Say which blocks a table does not time: a data sheet's times beside measured ones mislead."""
    known = {table, EXTRAPOLATED + table}
    lacking = sorted({block for (_, block), names in origins.items() if not names <= known})
    if lacking:
        warnings.warn(
            f"{table} does not time all of {len(lacking)} blocks, {lacking[0]} for one; the data "
            "sheet prices the rest, which may come out far too cheap: run puzzle profile on it "
            "again with the --config and --set of this search, which times what is missing",
            stacklevel=3,
        )


def _warn_beyond(origins: dict[tuple[int, str], frozenset[str]]) -> None:
    beyond = [
        name for origin in origins.values() for name in origin if name.startswith(EXTRAPOLATED)
    ]
    if beyond:
        warnings.warn(
            f"{len(beyond)} of {len(origins)} prices lie {beyond[0]}'s measurements and are "
            "extrapolated; profile larger batches or lengths to measure them",
            stacklevel=3,
        )
