"""An architecture is its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzle.architecture import Architecture
from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, NoOp
from puzzle.errors import PuzzleError

HALVES = [LinearMap(), NoOp()]
BLOCKS = st.builds(
    Block,
    st.one_of(
        st.sampled_from(HALVES),
        st.builds(GQA, st.integers(1, 128), st.none() | st.integers(1, 1 << 20)),
    ),
    st.one_of(st.sampled_from(HALVES), st.builds(FFN, st.integers(1, 1 << 17))),
)
SMALL = Architecture("org/model", (Block(GQA(2), FFN(96)), Block(NoOp(), LinearMap())))


@given(st.sampled_from(["embedded", "org/model-1.5B", "/a folder/x"]), st.lists(BLOCKS, min_size=1))
def test_the_text_form_round_trips(parent: str, blocks: list[Block]) -> None:
    architecture = Architecture(parent, tuple(blocks))
    assert Architecture.parse(str(architecture)) == architecture


def test_the_text_form_is_one_line_a_layer() -> None:
    assert str(SMALL) == "parent: org/model\n0  gqa2+ffn96\n1  noop+linear\n"


def test_layers_line_up_beyond_nine() -> None:
    lines = str(Architecture("p", SMALL.blocks * 6)).splitlines()
    assert lines[1] == " 0  gqa2+ffn96"
    assert lines[12] == "11  noop+linear"


def test_comments_empty_lines_and_missing_numbers_are_read() -> None:
    text = "# by hand\nparent: org/model\n\ngqa2+ffn96  # as the parent\n   1   noop+linear\n"
    assert Architecture.parse(text) == SMALL


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"the architecture names no layer: write one line a layer"),
        ("parent: x\n# nothing", r"the architecture names no layer"),
        ("0 gqa2+ffn96\n2 noop+noop", r"line 2: expected layer 1, found '2'"),
        ("0 gqa2+ffn96\n\n0 noop+noop", r"line 3: expected layer 1, found '0'"),
        ("layer 0 gqa2+ffn96", r"line 1: expected layer 0, found 'layer 0'"),
        ("gqa2", r"line 1: block 'gqa2' is not of the form attention\+ffn"),
        ("gqa0+ffn96", r"line 1: attention variant 'gqa0' is unknown"),
        ("gqa2+ffn96x", r"line 1: FFN variant 'ffn96x' is unknown"),
    ],
)
def test_what_does_not_read_is_named_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(PuzzleError, match=sentence):
        Architecture.parse(text)


def test_counts() -> None:
    assert Architecture("p", SMALL.blocks * 3 + SMALL.blocks[:1]).counts() == {
        SMALL.blocks[0]: 4,
        SMALL.blocks[1]: 3,
    }


def test_it_is_a_value() -> None:
    assert len({SMALL, Architecture.parse(str(SMALL))}) == 1
