"""The map of the run directory: the name of every record a stage writes and another reads.

trace/<model>/<split>/h007      residual stream entering layer 7, [S, T, D]
trace/<model>/scoring/g007      Fisher gradients at the same place, [K, S, T, D]
library/L07.attention=gqa2      a trained half
scores/L07                      the scores of the layer's blocks
costs/<hardware>/<workload>     what the layer's blocks cost
solutions/<name>/solution       the chosen architecture, its problem and proof
children/<name>/evaluation      what the child is worth
"""

from __future__ import annotations

from puzzle.blocks.variant import Block, NoOp


def hidden(split: str, layer: int, model: str = "parent") -> str:
    """h_layer [S, T, D] of one split."""
    return f"trace/{model}/{split}/h{layer:03}"


def gradient(layer: int, model: str = "parent") -> str:
    """g_layer [K, S, T, D] on the scoring split."""
    return f"trace/{model}/scoring/g{layer:03}"


def half(layer: int, block: Block) -> str:
    """A trained half: a block whose other half is a no-op."""
    if isinstance(block.attention, NoOp):
        return f"library/L{layer:02}.ffn={block.ffn}"
    return f"library/L{layer:02}.attention={block.attention}"


def scores(layer: int) -> str:
    """Scores of the composed blocks of one layer."""
    return f"scores/L{layer:02}"
