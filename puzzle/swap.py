"""A swap: blocks that stand in for the parent's in one layer, or a run of layers taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puzzle.blocks.variant import NOTHING, Block

Blocks = tuple[Block, ...]
Stretch = tuple[int, int]  # layers start to stop - 1


@dataclass(frozen=True)
class Swap:
    """Blocks that stand in for the parent's from `layer` on: one block, or a run of no-ops."""

    layer: int
    blocks: Blocks

    @property
    def run(self) -> Stretch:
        """The layers it covers."""
        return self.layer, self.layer + len(self.blocks)

    def child(self, own: Blocks) -> Blocks:
        """The parent with these blocks in place."""
        return own[: self.layer] + self.blocks + own[self.layer + len(self.blocks) :]


def removal(start: int, stop: int) -> Swap:
    """Layers `start` to `stop - 1` taken out."""
    return Swap(start, (NOTHING,) * (stop - start))


def swaps(
    own: Sequence[Block], blocks: Sequence[Block], removed: Sequence[Stretch] = ()
) -> list[Swap]:
    """What makes a child of the parent `own`: its runs `removed` as one each, its other blocks."""
    inside = {layer for run in removed for layer in range(*run)}
    found = [
        Swap(layer, (block,))
        for layer, block in enumerate(blocks)
        if layer not in inside and block != own[layer]
    ]
    return found + [removal(*run) for run in removed]


def removed_runs(blocks: Sequence[Block]) -> Iterator[Stretch]:
    """The longest runs of two or more layers that hold nothing."""
    start = 0
    for layer, block in enumerate([*blocks, None]):
        if block != NOTHING:
            if layer - start > 1:
                yield start, layer
            start = layer + 1
