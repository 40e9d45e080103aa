"""The search space: which composed blocks each layer may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from puzzle.blocks.kind import Variant
from puzzle.blocks.variant import GQA, Block, parse_attention, parse_ffn
from puzzle.config import Space
from puzzle.errors import PuzzleError
from puzzle.export.targets import Target, refusal
from puzzle.library import given, halves, trained_whole

Half = Literal["attention", "ffn"]
Options = Sequence[Sequence[Block]]  # per layer, the blocks it may hold
PARSE: dict[Half, Callable[[str], Variant]] = {"attention": parse_attention, "ffn": parse_ffn}


def layer_blocks(
    parents: Sequence[Block], space: Space, target: Target
) -> tuple[tuple[Block, ...], ...]:
    """Per layer, the blocks to choose from: the parent's own first, then the others.

    Percentages are of the parent's KV heads (where they divide), of its groups of heads (rounded),
    of its experts, and of its FFN width (rounded to the serving format's step where the parent is
    wide enough). What the target engine cannot load is left out, and what other layers of the
    parent have: experts of a layer with a dense FFN, or the reverse. Layers in `space.keep` have no
    choice.

    Raises:
        PuzzleError: a kept layer that does not exist, a variant the parent cannot give.
    """
    beyond = [layer for layer in space.keep if layer >= len(parents)]
    if beyond:
        raise PuzzleError(
            f"space.keep names layer {beyond[0]}, but the parent has layers 0 to {len(parents) - 1}"
        )
    _check_suits("attention", space.attention, [parent.attention for parent in parents])
    _check_suits("ffn", space.ffn, [parent.ffn for parent in parents])
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
        attentions, ffns = zip(*map(halves, choices))
        whole = [block for block in choices if coupled and trained_whole(block, parent)]
        wanted = dict.fromkeys([*attentions, *ffns, *whole])
        found.append([piece for piece in wanted if piece not in given(parent)])
    return found


def _blocks(layer: int, parent: Block, space: Space, target: Target) -> tuple[Block, ...]:
    attentions = _variants("attention", space.attention, parent.attention)
    ffns = _variants("ffn", space.ffn, parent.ffn)
    composed = [Block(a, f) for a in attentions for f in ffns]
    allowed = [block for block in composed if refusal(target, layer, block) is None]
    return tuple(dict.fromkeys([parent, *allowed]))


def _variants(half: Half, entries: Iterable[str], own: Variant) -> list[Any]:
    """The variants that these entries name and that can be made from the parent's `own`."""
    found = []
    for entry in entries:
        if "%" in entry:
            found.append(_share(entry, own))
            continue
        variant = PARSE[half](entry)
        if not variant.suits(own):
            continue
        if excess := variant.excess(own):
            raise PuzzleError(f"space.{half} asks for {excess}")
        found.append(variant)
    return [variant for variant in found if variant is not None]


def _share(entry: str, own: Variant) -> Variant | None:
    """The variant that holds this percentage of the parent's own."""
    number, _, groups = entry.partition("%")
    fraction = float(number) / 100
    if not groups:
        return own.share(fraction)
    return own.groups(fraction) if isinstance(own, GQA) else None


def _check_suits(half: Half, entries: Iterable[str], owns: Sequence[Variant]) -> None:
    """PuzzleError for a variant that no layer of the parent can give."""
    for entry in entries:
        if "%" not in entry and not any(map(PARSE[half](entry).suits, owns)):
            raise PuzzleError(
                f"space.{half} asks for {entry}, but no layer of the parent has such a half; its "
                f"own are {', '.join(dict.fromkeys(map(str, owns)))}"
            )
