"""Which block an engine can load, said before the search instead of after it.

Tried against the engines: vLLM reads DeciLM checkpoints of Llama models only, crashes where the
first layer has no attention, and knows no linear map and no window in a layer. Hugging Face with
the modeling files of the checkpoint loads every block of every family.
"""

from __future__ import annotations

from typing import Literal

from puzzle.blocks.variant import FFN, WIDTH_STEP, Block, NoOp
from puzzle.errors import PuzzleError

Target = Literal["vllm", "hf"]


def check_family(target: Target, family: str) -> None:
    """PuzzleError when `target` cannot serve children of this family at all."""
    if target == "vllm" and family != "llama":
        raise PuzzleError(
            f"vLLM serves layers that differ for llama parents only, this one is of the family "
            f"{family!r}; add --set target=hf"
        )


def refusal(target: Target, layer: int, block: Block) -> str | None:
    """Why `target` cannot load `block` in this layer; None when it can."""
    if target == "hf":
        return None
    if reason := block.attention.beyond_decilm or block.ffn.beyond_decilm:
        return reason
    if layer == 0 and isinstance(block.attention, NoOp):
        return "vLLM crashes where the first layer has no attention"
    return None


def served(family: str, block: Block) -> Block:
    """The block as it is written and priced: DeciLM pads FFN widths with zero channels."""
    if family != "llama" or not isinstance(block.ffn, FFN):
        return block
    return Block(block.attention, FFN(-(-block.ffn.intermediate_size // WIDTH_STEP) * WIDTH_STEP))
