"""The search space: which composed blocks each layer may take."""

from __future__ import annotations

from collections.abc import Sequence

from puzzle.blocks.variant import (
    FFN,
    GQA,
    AttentionVariant,
    Block,
    FFNVariant,
    NoOp,
    parse_attention,
    parse_ffn,
)
from puzzle.config import Space
from puzzle.errors import PuzzleError
from puzzle.export.targets import WIDTH_STEP, Target, refusal
from puzzle.library import trained_whole


def layer_blocks(
    parents: Sequence[Block], space: Space, target: Target
) -> tuple[tuple[Block, ...], ...]:
    """Per layer, the blocks to choose from: the parent's own first, then the others.

    Percentages are of the parent's KV heads (where they divide) and of its FFN width (rounded to
    the serving format's step where the parent is wide enough); what the target engine cannot load
    is left out. Layers in `space.keep` have no choice.

    Raises:
        PuzzleError: a kept layer that does not exist, a variant the parent cannot give.
    """
    beyond = [layer for layer in space.keep if layer >= len(parents)]
    if beyond:
        raise PuzzleError(
            f"space.keep names layer {beyond[0]}, but the parent has layers 0 to {len(parents) - 1}"
        )
    return tuple(
        (parent,) if layer in space.keep else _blocks(layer, parent, space, target)
        for layer, parent in enumerate(parents)
    )


def pieces(
    blocks: Sequence[Sequence[Block]], parents: Sequence[Block], *, coupled: bool = False
) -> list[list[Block]]:
    """Per layer, what must be made: every half in use but the parent's and no-ops.

    A half is a block whose other half is a no-op. Where `coupled`, the composed blocks follow.
    """
    found = []
    for choices, parent in zip(blocks, parents):
        parts = [Block(block.attention, NoOp()) for block in choices]
        parts += [Block(NoOp(), block.ffn) for block in choices]
        given = {Block(parent.attention, NoOp()), Block(NoOp(), parent.ffn), Block(NoOp(), NoOp())}
        whole = [block for block in choices if coupled and trained_whole(block, parent)]
        found.append([part for part in dict.fromkeys([*parts, *whole]) if part not in given])
    return found


def _blocks(layer: int, parent: Block, space: Space, target: Target) -> tuple[Block, ...]:
    attentions = [_attention(entry, parent) for entry in space.attention]
    ffns = [_ffn(entry, parent) for entry in space.ffn]
    composed = [Block(a, f) for a in attentions if a is not None for f in ffns]
    allowed = [block for block in composed if refusal(target, layer, block) is None]
    return tuple(dict.fromkeys([parent, *allowed]))


def _attention(entry: str, parent: Block) -> AttentionVariant | None:
    """A variant; None for a percentage that does not divide the parent's KV heads."""
    own = parent.attention
    assert isinstance(own, GQA)
    if entry.endswith("%"):
        heads = own.kv_heads * float(entry[:-1]) / 100
        divides = heads >= 1 and heads.is_integer() and own.kv_heads % int(heads) == 0
        return GQA(int(heads), own.window) if divides else None
    variant = parse_attention(entry)
    if isinstance(variant, GQA) and own.kv_heads % variant.kv_heads:
        raise PuzzleError(
            f"space.attention asks for {variant.kv_heads} KV heads, which do not divide the "
            f"parent's {own.kv_heads}"
        )
    return variant


def _ffn(entry: str, parent: Block) -> FFNVariant:
    own = parent.ffn
    assert isinstance(own, FFN)
    if entry.endswith("%"):
        step = WIDTH_STEP if own.intermediate_size >= 4 * WIDTH_STEP else 1
        width = round(own.intermediate_size * float(entry[:-1]) / 100 / step) * step
        return FFN(min(max(step, width), own.intermediate_size)) if entry != "100%" else own
    variant = parse_ffn(entry)
    if isinstance(variant, FFN) and variant.intermediate_size > own.intermediate_size:
        raise PuzzleError(
            f"space.ffn asks for {variant.intermediate_size} channels, the parent has "
            f"{own.intermediate_size}"
        )
    return variant
