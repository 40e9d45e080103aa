"""From blocks to torch modules: the bridge between `Block` values and the exported model classes.

The child in memory is the class that is exported, so what is trained, scored and measured is what
is served. A block's entry in `block_configs` (the DeciLM format, see export/) is its description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from puzzle.blocks.variant import Block
from puzzle.export import configuration_puzzle, modeling_puzzle
from puzzle.export.modeling_puzzle import PuzzleForCausalLM, PuzzleLayer

# parent's model_type -> (configuration class, model class) of its children
FAMILIES = {
    "llama": ("DeciLMConfig", "DeciLMForCausalLM"),
    "mistral": ("PuzzleMistralConfig", "PuzzleMistralForCausalLM"),
    "qwen2": ("PuzzleQwen2Config", "PuzzleQwen2ForCausalLM"),
    "qwen3": ("PuzzleQwen3Config", "PuzzleQwen3ForCausalLM"),
    "nemotron": ("PuzzleNemotronConfig", "PuzzleNemotronForCausalLM"),
    "mixtral": ("PuzzleMixtralConfig", "PuzzleMixtralForCausalLM"),
    "qwen3_moe": ("PuzzleQwen3MoeConfig", "PuzzleQwen3MoeForCausalLM"),
    "gpt_oss": ("PuzzleGptOssConfig", "PuzzleGptOssForCausalLM"),
}
# `block_configs` entries of halves in which nothing is said
ATTENTION_ENTRY = {
    "n_heads_in_group": None,
    "no_op": False,
    "replace_with_linear": False,
    "num_sink_tokens": None,
    "sparsify": None,
    "unshifted_sink": False,
    "use_prefill_window_in_sink_attention": False,
    "window_length": None,
}
FFN_ENTRY = {
    "intermediate_size": None,
    "ffn_mult": None,
    "no_op": False,
    "replace_with_linear": False,
    "sparsify": None,
}

Weights = dict[str, torch.Tensor]


def block_config(block: Block, heads: int, group: int) -> dict[str, Any]:
    """The `block_configs` entry of a block where the parent's `heads` query heads share KV heads
    by `group`.

    The FFN width is written as `intermediate_size`; the exporter rewrites it for its target.
    """
    return {
        "attention": ATTENTION_ENTRY | block.attention.entry(heads, group),
        "ffn": FFN_ENTRY | block.ffn.entry(heads, group),
    }


def child_config(parent_config: Any, blocks: Sequence[Block]) -> Any:
    """The configuration of a model that holds `blocks`, in the family of `parent_config`.

    Windows belong to the layers, so the model-wide ones are cleared: the KV cache then keeps every
    token, and each layer's mask hides what its window does not see.
    """
    config_class = getattr(configuration_puzzle, FAMILIES[parent_config.model_type][0])
    fields = parent_config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        fields.pop(name, None)
    fields["num_hidden_layers"] = len(blocks)
    if "layer_types" in fields:
        fields["layer_types"] = ["full_attention"] * len(blocks)
    if "sliding_window" in fields:
        fields |= {"sliding_window": None, "use_sliding_window": False}
    heads = fields["num_attention_heads"]
    group = heads // (fields.get("num_key_value_heads") or heads)
    fields["block_configs"] = [block_config(block, heads, group) for block in blocks]
    config = config_class(**fields)
    config._attn_implementation = "eager" if parent_config.model_type == "gpt_oss" else "sdpa"
    config._experts_implementation = "grouped_mm"
    return config


def build_layer(parent_config: Any, block: Block, weights: Weights | None = None) -> PuzzleLayer:
    """One layer holding `block`; with `weights` loaded, else on the meta device (shapes only)."""
    config = child_config(parent_config, [block])
    with torch.device("meta"):
        layer = PuzzleLayer(config, config.block_configs[0], cache_slot=0)
    if weights is not None:
        load(layer, weights)
    return layer.eval()


def build_model(parent_config: Any, blocks: Sequence[Block]) -> PuzzleForCausalLM:
    """A child of `parent_config`'s family on the meta device, ready for `load`."""
    model_class = getattr(modeling_puzzle, FAMILIES[parent_config.model_type][1])
    config = child_config(parent_config, blocks)
    with torch.device("meta"):
        model = model_class(config)
    model.model.rotary_emb = rotary(config)
    return model.eval()


def rotary(config: Any) -> nn.Module:
    """The family's rotary embedding, whose buffers are computed rather than loaded."""
    return modeling_puzzle.family_class(config, "RotaryEmbedding")(config=config)


def load(module: nn.Module, weights: Weights) -> None:
    """Give `module`, built on the meta device, exactly these tensors (no copy); strict on names."""
    module.load_state_dict(weights, strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
