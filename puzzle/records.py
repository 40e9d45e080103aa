"""The map of the run directory: the name of every record a stage writes and another reads.

trace/<model>/<split>/h007      residual stream entering layer 7, [S, T, D]; the calibration split
                                comes in windows and parts, calibration/w000.p003
trace/<model>/<split>/tokens    the split's token ids, [S, T]
trace/<model>/scoring/g007      Fisher gradients at the same place, [K, S, T, D]
library/L07.attention=gqa2      a trained half; L07.block=gqa2+ffn768 where trained as a whole
scores/L07                      the scores of the layer's blocks
scores/removals                 the scores of runs of layers taken out
scores/exact/L07.gqa1+ffn256    what one block, or the removal of layers 7 to 9, really costs
scores/exact/L07-09.noop+noop
scores/around/L07               what blocks would change in the child last looked around
costs/<hardware>/<budget>       what every block costs, at every batch
solutions/<budget>              the chosen blocks, what they cost and what is proven; in .txt the
                                blocks alone, in .yaml the budget, where it was healed by its name
children/<budget>/M.L07         the mended layer 7 of M: the child, or the uniform child
children/<budget>/healed        the healed child's tensors; healed.part/ while they are made
children/<budget>/corrected     the parent that taught it, where it learned the text first
children/<budget>/tensorboard/  event files of the healing's losses
children/<budget>/evaluation.M  what M is worth: the parent, the uniform child, the child, healed
children/<budget>/compared/M.W  what M says or does, as `puzzle evaluate` found it
children/<budget>/hf/puzzle     in the exported checkpoint: where it comes from
"""

from __future__ import annotations

from collections.abc import Sequence

from puzzle.blocks.variant import Block, NoOp


def traced(split: str, model: str = "parent") -> str:
    """The folder of a split's streams."""
    return f"trace/{model}/{split}"


def hidden(split: str, layer: int, model: str = "parent") -> str:
    """h_layer [S, T, D] of one split."""
    return f"{traced(split, model)}/h{layer:03}"


def tokens(split: str) -> str:
    """Token ids [S, T] of one split."""
    return f"{traced(split)}/tokens"


def gradient(layer: int, model: str = "parent") -> str:
    """g_layer [K, S, T, D] on the scoring split."""
    return f"{traced('scoring', model)}/g{layer:03}"


def piece(layer: int, block: Block) -> str:
    """A trained half (a block whose other half is a no-op), or a block trained as a whole."""
    if isinstance(block.attention, NoOp):
        return f"library/L{layer:02}.ffn={block.ffn}"
    if isinstance(block.ffn, NoOp):
        return f"library/L{layer:02}.attention={block.attention}"
    return f"library/L{layer:02}.block={block}"


def scores(layer: int) -> str:
    """Scores of the composed blocks of one layer."""
    return f"scores/L{layer:02}"


def scores_around(layer: int) -> str:
    """What the blocks of one layer would change in the child last looked around."""
    return f"scores/around/L{layer:02}"


def removals() -> str:
    """Scores of runs of layers removed whole."""
    return "scores/removals"


def exact(layer: int, blocks: Sequence[Block]) -> str:
    """The exact score of blocks that stand in for the parent's from `layer` on."""
    last = f"-{layer + len(blocks) - 1:02}" if len(blocks) > 1 else ""
    return f"scores/exact/L{layer:02}{last}.{blocks[0]}"


def costs(hardware: str, budget: str) -> str:
    """The price list of a budget's workload."""
    return f"costs/{hardware}/{budget}"


def solution(budget: str) -> str:
    """The child chosen for a budget."""
    return f"solutions/{budget}"


def child(budget: str, what: str) -> str:
    """A record of the child chosen for a budget: heal, healed, exported."""
    return f"children/{budget}/{what}"


def layer_of(child: str, layer: int) -> str:
    """A mended layer of a child, `child` being a record's name."""
    return f"{child}.L{layer:02}"


def evaluation(budget: str, model: str) -> str:
    """What a model is worth: `parent`, `uniform`, `child` or `healed`."""
    return child(budget, f"evaluation.{model}")


def exported(budget: str) -> str:
    """In the folder of the exported checkpoint; gone when the folder goes."""
    return child(budget, "hf/puzzle")
