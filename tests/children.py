"""Random children of tiny parents, and what they make of tokens."""

from __future__ import annotations

from typing import Any

import torch

from puzzle.blocks.variant import Block
from puzzle.modules import Weights, build_model, load

Blocks = tuple[Block, ...]


def parse(text: str) -> Blocks:
    """Blocks from their text forms."""
    return tuple(map(Block.parse, text.split()))


def random_weights(config: Any, blocks: Blocks) -> Weights:
    """Random tensors of a child, by checkpoint name; norms are not left at one."""
    generator = torch.Generator().manual_seed(3)
    state = build_model(config, blocks).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {
        name: 0.1 * torch.randn(meta.shape, generator=generator) + ("norm" in name)
        for name, meta in state.items()
    }


def child_logits(
    config: Any, blocks: Blocks, weights: Weights, tokens: torch.Tensor
) -> torch.Tensor:
    """What the child itself, never written, makes of the tokens."""
    model = build_model(config, blocks)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    load(model, {**weights, "lm_head.weight": weights[head]})
    with torch.no_grad():
        return model(tokens).logits
