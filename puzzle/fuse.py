"""FFN fusion: FFNs that follow each other without attention, side by side in one wide FFN.

A run of n FFNs with no attention between them becomes two layers: `X + sum_j FFN_j(norm_j(X))` of
the first n - 1, which is one FFN with their channels together, and the last, which stays (FFN
Fusion, arXiv 2503.18908). The sum is exact; that it stands for the FFNs one after another is not,
and healing makes it good. Fewer and wider matrices keep a GPU busier at the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from puzzle.blocks.variant import FFN, NOTHING, Block, NoOp
from puzzle.errors import PuzzleError
from puzzle.export.rewrite import FFN_NORM, Child, Layer
from puzzle.swap import Blocks

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # gated FFNs behind an RMSNorm without bias
GATE, UP, DOWN = (f"mlp.{name}_proj." for name in ("gate", "up", "down"))


def fuse(child: Child) -> Child:
    """The child with every run of its FFNs fused; as many layers, those emptied hold nothing.

    Raises:
        PuzzleError: a family whose FFNs do not fuse.
    """
    if child.config.model_type not in FAMILIES:
        raise PuzzleError(
            f"FFNs of the family {child.config.model_type!r} are not fused, those of "
            f"{', '.join(FAMILIES)} are; leave fuse at false"
        )
    weights = [layer.weights for layer in child.layers()]
    for run in runs(child.blocks):
        wide = _side_by_side([weights[layer] for layer in run])
        for layer in run:
            weights[layer] = {}
        weights[run[0]] = wide
    return child.with_layers([*map(Layer, fused_blocks(child.blocks), weights)])


def fused_blocks(blocks: Sequence[Block]) -> Blocks:
    """What the layers of `fuse` hold."""
    found = list(blocks)
    for run in runs(blocks):
        width = sum(_width(blocks[layer]) for layer in run)
        for layer in run:
            found[layer] = NOTHING
        found[run[0]] = Block(NoOp(), FFN(width))
    return tuple(found)


def runs(blocks: Sequence[Block]) -> list[list[int]]:
    """The layers that fuse into one, for each run: all of its FFNs but the last, two at least.

    Layers that hold nothing do not end a run.
    """
    there = [layer for layer, block in enumerate(blocks) if block != NOTHING]
    alone = groupby(there, lambda layer: _ffn_alone(blocks[layer]))
    found = [list(layers)[:-1] for fusable, layers in alone if fusable]
    return [layers for layers in found if len(layers) > 1]


def _ffn_alone(block: Block) -> bool:
    return isinstance(block.attention, NoOp) and isinstance(block.ffn, FFN)


def _width(block: Block) -> int:
    return block.ffn.intermediate_size if isinstance(block.ffn, FFN) else 0


def _side_by_side(ffns: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One FFN that adds what all add to the same stream; the norms' weights go into its columns."""
    wide = {
        into + "weight": torch.cat([ffn[into + "weight"] * ffn[FFN_NORM] for ffn in ffns])
        for into in (GATE, UP)
    }
    wide[DOWN + "weight"] = torch.cat([ffn[DOWN + "weight"] for ffn in ffns], dim=1)
    wide[FFN_NORM] = torch.ones_like(ffns[0][FFN_NORM])
    if GATE + "bias" in ffns[0]:
        wide |= {
            into + "bias": torch.cat([ffn[into + "bias"] for ffn in ffns]) for into in (GATE, UP)
        }
        wide[DOWN + "bias"] = sum((ffn[DOWN + "bias"] for ffn in ffns[1:]), ffns[0][DOWN + "bias"])
    return wide
