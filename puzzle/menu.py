"""The menu: all that a choice of blocks depends on, and the choice itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from puzzle.architecture import Architecture
from puzzle.blocks.variant import Block
from puzzle.budget import Budget, Limits
from puzzle.hardware.price import Prices
from puzzle.hardware.throughput import Prediction, predict
from puzzle.run import fingerprint
from puzzle.swap import Blocks, Stretch, Swap

Losses = Sequence[Mapping[Block, float]]  # per layer, the loss of each block it may hold


@dataclass(frozen=True)
class Choice:
    """One block per layer: what they lose by their scores, what they come to, what is proven."""

    blocks: tuple[Block, ...]
    loss: float  # the sum of the scores: the KL predicted for the child
    prediction: Prediction
    shares: dict[str, float]  # of each limit, how much is used
    proof: dict[str, Any]
    removed: tuple[Stretch, ...] = ()  # layers taken out together, scored as one
    measured_kl: float | None = None  # on the scoring split, once it has been tried

    def architecture(self, parent: str) -> Architecture:
        """The blocks as an architecture of this parent."""
        return Architecture(parent, self.blocks)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Choice:
        """What `as_record` wrote."""
        parsed = {
            "blocks": tuple(map(Block.parse, record["blocks"])),
            "prediction": Prediction(**record["prediction"]),
            "removed": tuple(map(tuple, record["removed"])),
        }
        return cls(**{**record, **parsed})

    def as_record(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return {**asdict(self), "blocks": [str(block) for block in self.blocks]}


@dataclass(frozen=True)
class Region:
    """The children that differ from `center` in at most `radius` layers."""

    center: Blocks
    radius: int


@dataclass(frozen=True)
class Menu:
    """Per layer the loss of each block it may hold, what blocks cost, and the budget to keep.

    `removals` has the loss of taking out runs of two or more layers together, by their layers. A
    run that is listed is never removed layer by layer at the sum of its layers' losses, nor is a
    run longer than all that are listed.
    """

    losses: Losses
    prices: Prices
    budget: Budget
    parent: Prediction  # what the parent comes to under the same workload
    removals: Mapping[Stretch, float] = field(default_factory=dict)
    region: Region | None = None  # None: anywhere

    @cached_property
    def limits(self) -> Limits:
        """The budget in numbers, relative to the parent."""
        return self.budget.resolve(self.parent)

    def digest(self) -> str:
        """Identifies all of it by a hash."""
        losses = [{str(block): loss for block, loss in layer.items()} for layer in self.losses]
        prices, budget = self.prices.rows(), self.budget.model_dump(mode="json")
        removals, region = sorted(self.removals.items()), str(self.region)
        return fingerprint(losses, prices, budget, removals, region)

    def with_losses(self, known: Mapping[Swap, float]) -> Menu:
        """The menu with these losses of single blocks and of runs in place of its own."""
        losses = [dict(layer) for layer in self.losses]
        removals = dict(self.removals)
        for swap, loss in known.items():
            if len(swap.blocks) > 1:
                removals[swap.run] = loss
            else:
                losses[swap.layer][swap.blocks[0]] = loss
        return replace(self, losses=losses, removals=removals)

    def serve(self, blocks: Sequence[Block], batch: int) -> Prediction:
        """What a child of these blocks comes to at this batch."""
        found = predict(self.prices.total(blocks, batch), self.budget.workload, batch)
        return replace(found, gpus=self.budget.gpus)

    def choice(
        self,
        blocks: Sequence[Block],
        batch: int,
        proof: dict[str, Any],
        removed: Sequence[Stretch] = (),
    ) -> Choice:
        """These blocks as a choice; layers `removed` together count as one."""
        inside = {layer for run in removed for layer in range(*run)}
        alone = [layer for layer in range(len(blocks)) if layer not in inside]
        loss = sum(self.losses[layer][blocks[layer]] for layer in alone)
        loss += sum(self.removals[run] for run in removed)
        prediction = self.serve(blocks, batch)
        shares = self.limits.shares(prediction)
        return Choice(tuple(blocks), loss, prediction, shares, proof, tuple(removed))
