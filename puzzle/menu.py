"""The menu: all that a choice of blocks depends on, and the choice itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from puzzle.architecture import Architecture
from puzzle.blocks.variant import Block
from puzzle.budget import Budget, Limits
from puzzle.hardware.price import Prices
from puzzle.hardware.throughput import Prediction, predict
from puzzle.run import fingerprint

Losses = Sequence[Mapping[Block, float]]  # per layer, the loss of each block it may hold


@dataclass(frozen=True)
class Choice:
    """One block per layer: what they lose by their scores, what they come to, what is proven."""

    blocks: tuple[Block, ...]
    loss: float  # the sum of the scores: the KL predicted for the child
    prediction: Prediction
    shares: dict[str, float]  # of each limit, how much is used
    proof: dict[str, Any]
    measured_kl: float | None = None  # on the scoring split, once it has been tried

    def architecture(self, parent: str) -> Architecture:
        """The blocks as an architecture of this parent."""
        return Architecture(parent, self.blocks)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Choice:
        """What `as_record` wrote."""
        blocks = tuple(map(Block.parse, record["blocks"]))
        return cls(**{**record, "blocks": blocks, "prediction": Prediction(**record["prediction"])})

    def as_record(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return {**asdict(self), "blocks": [str(block) for block in self.blocks]}


@dataclass(frozen=True)
class Menu:
    """Per layer the loss of each block it may hold, what blocks cost, and the budget to keep."""

    losses: Losses
    prices: Prices
    budget: Budget
    parent: Prediction  # what the parent comes to under the same workload

    @cached_property
    def limits(self) -> Limits:
        """The budget in numbers, relative to the parent."""
        return self.budget.resolve(self.parent)

    def digest(self) -> str:
        """Identifies all of it by a hash."""
        losses = [{str(block): loss for block, loss in layer.items()} for layer in self.losses]
        return fingerprint(losses, self.prices.rows(), self.budget.model_dump(mode="json"))

    def serve(self, blocks: Sequence[Block], batch: int) -> Prediction:
        """What a child of these blocks comes to at this batch."""
        return predict(self.prices.total(blocks, batch), self.budget.workload, batch)

    def choice(self, blocks: Sequence[Block], batch: int, proof: dict[str, Any]) -> Choice:
        """These blocks as a choice."""
        loss = sum(options[block] for options, block in zip(self.losses, blocks))
        prediction = self.serve(blocks, batch)
        return Choice(tuple(blocks), loss, prediction, self.limits.shares(prediction), proof)
