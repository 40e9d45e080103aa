"""Which block an engine can load, said before the search instead of after it.

Tried against the engines: vLLM reads DeciLM checkpoints of Llama models only, crashes where the
first layer has no attention, and knows no linear map, no window and no fewer query heads in a
layer; llama.cpp runs linear attention and fewer heads too. Hugging Face with the modeling files of
the checkpoint loads every block of every family.

`rewrite.py` expresses linear maps, fewer heads and a first layer without attention in blocks that
the engines do have, but as an FFN as wide as the hidden state, with heads of zeros, and with a KV
head: the same price buys a block that does more, so the search leaves them out.
"""

from __future__ import annotations

from typing import Literal

from puzzle.blocks.kind import AttentionVariant
from puzzle.blocks.variant import FFN, WIDTH_STEP, Block, Groups, LinearMap, NoOp
from puzzle.errors import PuzzleError
from puzzle.strict_yaml import did_you_mean

Target = Literal["vllm", "hf", "llama.cpp"]
ENGINES: dict[Target, str] = {"vllm": "vLLM", "hf": "Hugging Face", "llama.cpp": "llama.cpp"}
ZERO_WIDTH = 32  # of the FFN of zeros that llama.cpp needs where a layer has attention alone


def target_of(name: str) -> Target:
    """The target of this name; PuzzleError says which there are."""
    for target in ENGINES:
        if target == name:
            return target
    raise PuzzleError(f"there is no export for {name!r}; {did_you_mean(name, list(ENGINES))}")


def check_family(target: Target, family: str) -> None:
    """PuzzleError when `target` cannot serve children of this family at all."""
    if target != "hf" and family != "llama":
        raise PuzzleError(
            f"{ENGINES[target]} serves layers that differ for llama parents only, this one is of "
            f"the family {family!r}; take the target hf (--set target=hf, or export --for hf)"
        )


def refusal(target: Target, layer: int, block: Block) -> str | None:
    """Why `target` cannot load `block` in this layer; None when it can."""
    if target == "hf":
        return None
    engine = ENGINES[target]
    native = target == "llama.cpp" and _in_gguf(block.attention)
    beyond = (not native and block.attention.beyond_decilm) or block.ffn.beyond_decilm
    if beyond:
        return f"{engine} {beyond}"
    if layer == 0 and isinstance(block.attention, (NoOp, LinearMap)):
        return f"{engine} crashes where the first layer has no attention"
    return None


def _in_gguf(attention: AttentionVariant) -> bool:
    """What the architecture `deci` has beyond DeciLM: linear maps, and heads counted by layer."""
    return isinstance(attention, (LinearMap, Groups)) and attention.sees is None


def served(family: str, block: Block, target: Target = "vllm") -> Block:
    """The block as it is written and priced: DeciLM pads FFN widths with zero channels."""
    if target == "llama.cpp":
        alone = isinstance(block.ffn, NoOp) and not isinstance(block.attention, NoOp)
        return Block(block.attention, FFN(ZERO_WIDTH)) if alone else block
    if family != "llama" or not isinstance(block.ffn, FFN):
        return block
    return Block(block.attention, FFN(-(-block.ffn.intermediate_size // WIDTH_STEP) * WIDTH_STEP))
