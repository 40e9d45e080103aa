"""Which blocks each layer may take."""

from __future__ import annotations

import pytest

from puzzle.blocks.variant import FFN, GQA, Block, Groups, LinearMap, NoOp
from puzzle.config import Space
from puzzle.errors import PuzzleError
from puzzle.export.targets import refusal
from puzzle.space import layer_blocks, pieces

PARENT = Block(GQA(4), FFN(1024))
PARENTS = (PARENT,) * 3


def texts(space: Space, parents: tuple[Block, ...] = PARENTS) -> list[list[str]]:
    """The blocks of each layer in text form, for the target that takes everything."""
    return [[str(block) for block in blocks] for blocks in layer_blocks(parents, space, "hf")]


def test_blocks_are_composed_and_the_parents_own_comes_first() -> None:
    space = Space(attention=("noop", "50%"), ffn=("noop", "100%", "linear"))
    assert texts(space)[0] == [
        "gqa4+ffn1024",  # always there, though the attentions named leave it out
        *("noop+noop", "noop+ffn1024", "noop+linear"),
        *("gqa2+noop", "gqa2+ffn1024", "gqa2+linear"),
    ]


def test_no_block_comes_twice() -> None:
    space = Space(attention=("100%", "gqa4", "25%", "gqa1"), ffn=("100%", "99%", "ffn1024"))
    assert texts(space)[0] == ["gqa4+ffn1024", "gqa1+ffn1024"]


@pytest.mark.parametrize(
    ("kv_heads", "entry", "expected"),
    [
        (4, "50%", 2),
        (4, "12.5%", None),  # half a head
        (3, "50%", None),
        (3, "33%", None),  # .99 of a head
        (8, "75%", None),  # 6 do not divide 8
        (8, "12.5%", 1),
    ],
)
def test_percentages_of_kv_heads_are_whole_and_divide(
    kv_heads: int, entry: str, expected: int | None
) -> None:
    parent = Block(GQA(kv_heads), FFN(1024))
    blocks = texts(Space(attention=(entry,), ffn=("100%",)), (parent,))[0]
    assert blocks[1:] == ([f"gqa{expected}+ffn1024"] if expected else [])


@pytest.mark.parametrize(
    ("kv_heads", "entry", "expected"),
    [
        (8, "75% groups", 6),
        (3, "75% groups", 2),
        (3, "25% groups", 1),  # one at least
        (2, "75% groups", None),  # all of them
        (1, "50% groups", None),
    ],
)
def test_percentages_of_groups_are_rounded(kv_heads: int, entry: str, expected: int | None) -> None:
    parent = Block(GQA(kv_heads, 64), FFN(1024))
    blocks = texts(Space(attention=(entry,), ffn=("100%",)), (parent,))[0]
    assert blocks[1:] == ([f"groups{expected}w64+ffn1024"] if expected else [])


def test_a_pruned_parent_has_fewer_groups_to_keep_and_none_to_pool() -> None:
    parent = Block(Groups(4), FFN(1024))
    space = Space(attention=("100%", "50%", "groups2", "50% groups"), ffn=("100%",))
    assert texts(space, (parent,))[0] == ["groups4+ffn1024", "groups2+ffn1024"]
    with pytest.raises(PuzzleError, match=r"gqa2, but no layer .* has such a half; .* groups4"):
        texts(Space(attention=("gqa2",), ffn=("100%",)), (parent,))


def test_more_groups_than_there_are_is_one_sentence() -> None:
    with pytest.raises(PuzzleError, match="4 groups of heads, the parent has 4; ask for fewer"):
        texts(Space(attention=("groups4",), ffn=("100%",)))


@pytest.mark.parametrize(
    ("width", "entry", "expected"),
    [
        (1024, "50%", 512),
        (1024, "10%", 256),  # never below one step
        (1024, "87%", 768),
        (1430, "99%", 1430),  # a step up would be wider than the parent
        (1536, "87%", 1280),
        (1500, "100%", 1500),  # the parent's own is what it is
        (1500, "50%", 768),
        (96, "50%", 48),  # a parent too narrow for steps
        (96, "1%", 1),
    ],
)
def test_percentages_of_the_width_are_in_steps(width: int, entry: str, expected: int) -> None:
    parent = Block(GQA(4), FFN(width))
    blocks = layer_blocks([parent], Space(attention=("100%",), ffn=(entry,)), "hf")[0]
    assert blocks == tuple(dict.fromkeys([parent, Block(GQA(4), FFN(expected))]))


def test_fewer_kv_heads_keep_the_window_of_their_layer() -> None:
    parents = (PARENT, Block(GQA(4, window=64), FFN(1024)))
    blocks = texts(Space(attention=("50%",), ffn=("100%",)), parents)
    assert blocks == [["gqa4+ffn1024", "gqa2+ffn1024"], ["gqa4w64+ffn1024", "gqa2w64+ffn1024"]]


def test_kept_layers_have_no_choice() -> None:
    blocks = layer_blocks(PARENTS, Space(keep=(0, 2)), "hf")
    assert blocks[0] == blocks[2] == (PARENT,)
    assert len(blocks[1]) > 20


def test_keeping_a_layer_that_is_not_there_says_which_are() -> None:
    with pytest.raises(PuzzleError, match=r"keep names layer 3, but the parent has layers 0 to 2"):
        layer_blocks(PARENTS, Space(keep=(1, 3)), "hf")


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Space(attention=("gqa3",)), r"asks for 3 KV heads, which do not divide the parent's 4"),
        (Space(attention=("gqa8",)), r"asks for 8 KV heads, which do not divide the parent's 4"),
        (Space(ffn=("ffn1280",)), r"asks for 1280 channels, the parent has 1024"),
    ],
)
def test_what_the_parent_cannot_give_is_refused(space: Space, sentence: str) -> None:
    with pytest.raises(PuzzleError, match=sentence):
        layer_blocks(PARENTS, space, "hf")


def test_what_the_engine_cannot_load_is_left_out() -> None:
    space = Space()
    everything, served = (layer_blocks(PARENTS, space, target) for target in ("hf", "vllm"))  # type: ignore[arg-type]
    for layer, blocks in enumerate(everything):
        refused = [block for block in blocks if refusal("vllm", layer, block)]
        assert refused
        assert served[layer] == tuple(block for block in blocks if block not in refused)
    assert not any(isinstance(block.ffn, LinearMap) for block in served[1])
    assert not any(isinstance(block.attention, NoOp) for block in served[0])


def test_pieces_are_what_must_be_made() -> None:
    """Every variant once, as a block whose other half is a no-op; not the parent's, not nothing."""
    space = Space(attention=("100%", "50%", "noop"), ffn=("100%", "50%", "linear", "noop"))
    blocks = layer_blocks(PARENTS, space, "hf")
    expected = [
        Block(GQA(2), NoOp()),
        Block(NoOp(), FFN(512)),
        Block(NoOp(), LinearMap()),
    ]
    assert pieces(blocks, PARENTS) == [expected] * 3
    assert pieces([(PARENT,)], [PARENT]) == [[]]
