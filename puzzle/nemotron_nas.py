"""Published children read back: the `block_configs` of a nemotron-nas (DeciLM) config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puzzle.blocks.kind import AttentionVariant, FFNVariant
from puzzle.blocks.variant import FFN, GQA, WIDTH_STEP, Block, Groups, LinearMap, NoOp
from puzzle.errors import PuzzleError

MODEL_TYPE = "nemotron-nas"
Fields = Mapping[str, Any]


def blocks_of(config: Fields) -> tuple[Block, ...]:
    """The block of every layer; PuzzleError names the layer that holds something else."""
    found = []
    for layer, entry in enumerate(config["block_configs"]):
        try:
            found.append(Block(_attention(config, entry["attention"]), _ffn(config, entry["ffn"])))
        except (KeyError, TypeError) as error:
            raise PuzzleError(
                f"block_configs of layer {layer} hold no attention and FFN of the DeciLM format "
                f"({type(error).__name__}: {error})"
            ) from None
    return tuple(found)


def as_llama(config: Fields) -> dict[str, Any]:
    """The config.json of the Llama it came from, as far as its layers still tell.

    The widest FFN is taken from the layers with attention: fused ones are wider.
    """
    blocks = blocks_of(config)
    groups = [block["attention"].get("n_heads_in_group") for block in config["block_configs"]]
    heads = config["num_attention_heads"]
    whole = [block for block in blocks if block.attention.cached_heads] or blocks
    widths = [block.ffn.intermediate_size for block in whole if isinstance(block.ffn, FFN)]
    return {
        **config,
        "model_type": "llama",
        "num_key_value_heads": heads // min(filter(None, groups), default=1),
        "intermediate_size": max(widths, default=0),
    }


def _attention(config: Fields, entry: Fields) -> AttentionVariant:
    if entry["no_op"]:
        return NoOp()
    if entry["replace_with_linear"]:
        return LinearMap()
    own, window = entry.get("num_attention_heads"), entry.get("window_length")
    kv_heads = (own or config["num_attention_heads"]) // entry["n_heads_in_group"]
    return Groups(kv_heads, window) if own else GQA(kv_heads, window)


def _ffn(config: Fields, entry: Fields) -> FFNVariant:
    if entry["no_op"]:
        return NoOp()
    if entry["replace_with_linear"]:
        return LinearMap()
    if entry.get("ffn_mult") is None:
        return FFN(entry["intermediate_size"])
    width = int(2 * entry["ffn_mult"] * config["hidden_size"] / 3)
    return FFN(-(-width // WIDTH_STEP) * WIDTH_STEP)
