"""Where trained halves live: the library's records, read back as weights."""

from __future__ import annotations

from dataclasses import dataclass

from puzzle import records
from puzzle.blocks.variant import AttentionVariant, Block, FFNVariant, NoOp
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.run import Run

ATTENTION_HALF = ("input_layernorm.", "self_attn.")


@dataclass(frozen=True)
class Library:
    """The halves every layer may take: trained ones from the run, the parent's own from itself."""

    run: Run
    parent: Parent

    def attention(self, layer: int, variant: AttentionVariant) -> PuzzleLayer:
        """A layer whose attention half is `variant` and whose FFN half is missing."""
        return self._half(layer, Block(variant, NoOp()))

    def ffn(self, layer: int, variant: FFNVariant) -> PuzzleLayer:
        """A layer whose FFN half is `variant` and whose attention half is missing."""
        return self._half(layer, Block(NoOp(), variant))

    def weights(self, layer: int, block: Block) -> Weights:
        """The tensors of a composed block, named as inside a layer."""
        attention = self._half_weights(layer, Block(block.attention, NoOp()))
        return attention | self._half_weights(layer, Block(NoOp(), block.ffn))

    def layer(self, layer: int, block: Block) -> PuzzleLayer:
        """A layer that holds a composed block, frozen."""
        return build_layer(self.parent.config, block, self.weights(layer, block))

    def _half(self, layer: int, half: Block) -> PuzzleLayer:
        return build_layer(self.parent.config, half, self._half_weights(layer, half))

    def _half_weights(self, layer: int, half: Block) -> Weights:
        own = self.parent.blocks[layer]
        if half == Block(NoOp(), NoOp()):
            return {}
        if half in (Block(own.attention, NoOp()), Block(NoOp(), own.ffn)):
            return own_half(self.parent.layer_weights(layer), half)
        tensors = self.run.load_tensors(records.half(layer, half))
        return {name: tensor.to(self.parent.dtype) for name, tensor in tensors.items()}


def own_half(weights: Weights, half: Block) -> Weights:
    """The tensors of a parent layer that belong to its attention half, or to its FFN half."""
    attention = isinstance(half.ffn, NoOp)
    return {n: w for n, w in weights.items() if n.startswith(ATTENTION_HALF) == attention}
