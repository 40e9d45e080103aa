"""Assemble: an architecture becomes a model, from the library's halves and the parent's rest."""

from __future__ import annotations

from collections.abc import Sequence

from puzzle.blocks.variant import Block
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.library import Library
from puzzle.modules import Weights, build_model, load


def assemble(library: Library, blocks: Sequence[Block]) -> PuzzleForCausalLM:
    """The child whose layer i holds `blocks[i]`, frozen; with the parent's blocks, the parent."""
    return from_weights(library, blocks, gather(library, blocks))


def gather(library: Library, blocks: Sequence[Block]) -> Weights:
    """Every tensor of the child by its checkpoint name; a tied head is not listed."""
    weights = library.parent.outside_weights()
    for layer, block in enumerate(blocks):
        for name, tensor in library.weights(layer, block).items():
            weights[f"model.layers.{layer}.{name}"] = tensor
    return weights


def from_weights(library: Library, blocks: Sequence[Block], weights: Weights) -> PuzzleForCausalLM:
    """The child with these tensors (a healed child's, say)."""
    model = build_model(library.parent.config, blocks)
    head = weights[library.parent.head_name]
    load(model, {**weights, "lm_head.weight": head})
    model.tie_weights()
    return model
