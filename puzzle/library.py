"""Where trained halves live: the library's records, read back as weights."""

from __future__ import annotations

from dataclasses import dataclass

from puzzle import records
from puzzle.blocks.kind import AttentionVariant, FFNVariant
from puzzle.blocks.variant import NOTHING, Block, NoOp
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.run import Run

ATTENTION_HALF = ("input_layernorm.", "self_attn.")


@dataclass(frozen=True)
class Library:
    """The halves every layer may take: trained ones from the run, the parent's own from itself.

    Where `coupled`, composed blocks were trained as a whole and are taken so.
    """

    run: Run
    parent: Parent
    coupled: bool = False

    def layer(self, layer: int, block: Block) -> PuzzleLayer:
        """A layer that holds `block`, frozen."""
        return build_layer(self.parent.config, block, self.weights(layer, block))

    def attention(self, layer: int, variant: AttentionVariant) -> PuzzleLayer:
        """A layer whose attention half is `variant` and whose FFN half is missing."""
        return self._half(layer, Block(variant, NoOp()))

    def ffn(self, layer: int, variant: FFNVariant) -> PuzzleLayer:
        """A layer whose FFN half is `variant` and whose attention half is missing."""
        return self._half(layer, Block(NoOp(), variant))

    def weights(self, layer: int, block: Block) -> Weights:
        """The tensors of a composed block, named as inside a layer."""
        if self.coupled and trained_whole(block, self.parent.blocks[layer]):
            return self._trained(layer, block)
        attention, ffn = (self._half_weights(layer, half) for half in halves(block))
        return attention | ffn

    def sources(self, layer: int, block: Block) -> list[str]:
        """The records that a block is made of; none for what is the parent's own."""
        own = self.parent.blocks[layer]
        if self.coupled and trained_whole(block, own):
            return [records.piece(layer, block)]
        made = [half for half in halves(block) if half not in given(own)]
        return [records.piece(layer, half) for half in made]

    def _half(self, layer: int, half: Block) -> PuzzleLayer:
        return build_layer(self.parent.config, half, self._half_weights(layer, half))

    def _half_weights(self, layer: int, half: Block) -> Weights:
        if half == NOTHING:
            return {}
        if half in given(self.parent.blocks[layer]):
            return own_half(self.parent.layer_weights(layer), half)
        return self._trained(layer, half)

    def _trained(self, layer: int, piece: Block) -> Weights:
        tensors = self.run.load_tensors(records.piece(layer, piece))
        return {name: tensor.to(self.parent.dtype) for name, tensor in tensors.items()}


def halves(block: Block) -> tuple[Block, Block]:
    """A block's attention and its FFN, each as a block whose other half is a no-op."""
    return Block(block.attention, NoOp()), Block(NoOp(), block.ffn)


def given(own: Block) -> tuple[Block, ...]:
    """The halves that need not be made where the parent's layer holds `own`: its own, and none."""
    return (*halves(own), NOTHING)


def is_half(piece: Block) -> bool:
    """Whether a piece of the library is one half of a layer, the other being a no-op."""
    return isinstance(piece.attention, NoOp) or isinstance(piece.ffn, NoOp)


def trained_whole(block: Block, own: Block) -> bool:
    """Whether coupled distillation trains this block: it has two halves, not both the parent's."""
    return block != own and not is_half(block)


def own_half(weights: Weights, half: Block) -> Weights:
    """The tensors of a parent layer that belong to its attention half, or to its FFN half."""
    attention = isinstance(half.ffn, NoOp)
    return {n: w for n, w in weights.items() if n.startswith(ATTENTION_HALF) == attention}
