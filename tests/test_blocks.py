"""What a half layer may hold, and how each kind starts from the parent's weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, MIXTURES

from puzzle.blocks.attention import initial_attention, keep_groups, least_missed
from puzzle.blocks.ffn import initial_ffn, kept_channels
from puzzle.blocks.variant import (
    FFN,
    GQA,
    AttentionVariant,
    Block,
    FFNVariant,
    Groups,
    LinearMap,
    MoE,
    NoOp,
    parse_attention,
    parse_ffn,
)
from puzzle.modules import build_layer
from puzzle.parent import Parent

ATTENTION = st.one_of(
    st.sampled_from([LinearMap(), NoOp()]),
    st.builds(GQA, st.integers(1, 128), st.none() | st.integers(1, 1 << 20)),
    st.builds(Groups, st.integers(1, 128), st.none() | st.integers(1, 1 << 20)),
)
FEED_FORWARD = st.one_of(
    st.sampled_from([LinearMap(), NoOp()]),
    st.builds(FFN, st.integers(1, 1 << 17)),
    st.builds(MoE, st.integers(1, 512)),
)
UNBIASED = sorted(set(FAMILIES) - {"llama-tied", "qwen2", "gpt_oss"})  # a linear half has no bias
DENSE = sorted(set(FAMILIES) - MIXTURES)


@pytest.fixture
def parent(family: str, checkpoints: dict[str, Path]) -> Parent:
    return Parent(checkpoints[family], family)


def output(
    parent: Parent, half: Block, weights: dict[str, torch.Tensor], tokens: int = 1
) -> torch.Tensor:
    """What a half adds to random streams of `tokens` tokens."""
    layer = build_layer(parent.config, half, weights)
    hidden = torch.randn(
        5, tokens, parent.shape.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        return layer(hidden, **parent.context(hidden, layer.window)) - hidden


@given(ATTENTION, FEED_FORWARD)
def test_variants_and_blocks_round_trip(attention: AttentionVariant, ffn: FFNVariant) -> None:
    assert parse_attention(str(attention)) == attention
    assert parse_ffn(str(ffn)) == ffn
    assert Block.parse(str(Block(attention, ffn))) == Block(attention, ffn)


@pytest.mark.parametrize("text", ["", "gqa", "gqa0", "gqa-1", "gqa2w0", "gqa2 ", "GQA2", "ffn96"])
def test_what_is_no_attention_variant_says_what_is(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is unknown; write gqa2, gqa8w1024, groups2, linear or noop"
    ):
        parse_attention(text)


@pytest.mark.parametrize("text", ["", "ffn", "ffn0", "ffn9.5", "ffn96w8", "gqa2", "no-op"])
def test_what_is_no_ffn_variant_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown; write ffn768, moe4, linear or noop"):
        parse_ffn(text)


def test_pooling_is_the_mean_of_each_group() -> None:
    heads, head_dim, hidden = 6, 4, 8
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(heads * head_dim, hidden, generator=generator)
    bias = torch.randn(heads * head_dim, generator=generator)
    weights = {"self_attn.k_proj.weight": key, "self_attn.v_proj.bias": bias}
    pooled = initial_attention(GQA(2), weights, head_dim)
    for group, members in enumerate(([0, 1, 2], [3, 4, 5])):
        rows = slice(group * head_dim, (group + 1) * head_dim)
        mean = sum(key[h * head_dim : (h + 1) * head_dim] for h in members) / 3
        torch.testing.assert_close(pooled["self_attn.k_proj.weight"][rows], mean)
        mean = sum(bias[h * head_dim : (h + 1) * head_dim] for h in members) / 3
        torch.testing.assert_close(pooled["self_attn.v_proj.bias"][rows], mean)


@pytest.mark.parametrize("kind", [GQA, Groups])
def test_kept_groups_compute_what_they_did(kind: type[GQA], parent: Parent) -> None:
    """As the parent's attention does where nothing hears the heads of the other group."""
    weights, shape = parent.layer_weights(0), parent.shape
    window = parent.blocks[0].attention.window  # type: ignore[union-attr]
    size = shape.heads // 2 * shape.head_dim
    missed = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0]))  # the second group stays
    kept = keep_groups(kind(1, window), weights, shape.head_dim, missed)
    deaf = weights["self_attn.o_proj.weight"].clone()
    deaf[:, :size] = 0
    whole = initial_attention(parent.blocks[0].attention, weights, shape.head_dim)
    expected = output(
        parent,
        Block(parent.blocks[0].attention, NoOp()),
        whole | {"self_attn.o_proj.weight": deaf},
        12,
    )
    torch.testing.assert_close(output(parent, Block(kind(1, window), NoOp()), kept, 12), expected)


def test_parts_go_in_the_order_of_what_is_missed_then() -> None:
    """The second is missed least alone, but stands in for the first: both must not go."""
    missed = torch.tensor([[4.0, 9.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert least_missed(missed, 2) == [0, 2]
    assert least_missed(missed, 1) == [0]
    assert least_missed(missed, 3) == [0, 1, 2]


def test_pooling_to_heads_that_do_not_divide_says_so() -> None:
    weights = {"self_attn.k_proj.weight": torch.zeros(24, 8)}
    with pytest.raises(ValueError, match="4 KV heads do not divide the parent's 6"):
        initial_attention(GQA(4), weights, head_dim=4)


def test_pooling_equal_heads_changes_nothing(parent: Parent) -> None:
    """With the KV heads of a group equal, fewer of them compute the same attention."""
    weights = parent.layer_weights(0)
    for name in [n for n in weights if n.startswith(("self_attn.k_proj", "self_attn.v_proj"))]:
        first = weights[name][: parent.shape.head_dim]
        weights[name] = torch.cat([first] * parent.shape.kv_heads)
    window = parent.blocks[0].attention.window  # type: ignore[union-attr]
    whole = Block(GQA(parent.shape.kv_heads, window), NoOp())
    pooled = Block(GQA(1, window), NoOp())
    torch.testing.assert_close(
        *(
            output(
                parent, half, initial_attention(half.attention, weights, parent.shape.head_dim), 12
            )
            for half in (whole, pooled)
        )
    )


@pytest.mark.parametrize("family", UNBIASED)
def test_the_linear_map_is_attention_of_a_token_to_itself(
    family: str, checkpoints: dict[str, Path]
) -> None:
    parent = Parent(checkpoints[family], family)
    weights, head_dim = parent.layer_weights(1), parent.shape.head_dim
    own = Block(parent.blocks[1].attention, NoOp())
    linear = Block(LinearMap(), NoOp())
    torch.testing.assert_close(
        output(parent, linear, initial_attention(linear.attention, weights, head_dim)),
        output(parent, own, initial_attention(own.attention, weights, head_dim)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("family", DENSE, indirect=True)
def test_the_linear_map_of_an_ffn_is_its_product(parent: Parent) -> None:
    weights = parent.layer_weights(0)
    linear = initial_ffn(LinearMap(), weights, torch.arange(parent.shape.intermediate_size))
    x = torch.randn(7, parent.shape.hidden_size)
    expected = x @ weights["mlp.up_proj.weight"].T @ weights["mlp.down_proj.weight"].T
    torch.testing.assert_close(
        x @ linear["mlp.linear_mlp.weight"].T, expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", DENSE, indirect=True)
def test_channels_that_are_dropped_are_as_if_zero(parent: Parent) -> None:
    """A width keeps the first channels of the order; the others could as well write nothing."""
    width, full = 40, parent.shape.intermediate_size
    channels = torch.randperm(full, generator=torch.Generator().manual_seed(1))
    weights = parent.layer_weights(2)
    narrow = Block(NoOp(), FFN(width))
    sliced = initial_ffn(narrow.ffn, weights, channels)
    silent = dict(weights)
    silent["mlp.down_proj.weight"] = weights["mlp.down_proj.weight"].clone()
    silent["mlp.down_proj.weight"][:, channels[width:]] = 0
    whole = Block(NoOp(), FFN(full))
    torch.testing.assert_close(
        output(parent, narrow, sliced),
        output(parent, whole, initial_ffn(whole.ffn, silent, channels)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_kept_channels_stay_in_the_parents_order() -> None:
    assert kept_channels(torch.tensor([4, 0, 3, 1, 2]), 3).tolist() == [0, 3, 4]
    with pytest.raises(ValueError, match="6 channels is wider than the parent's 5"):
        kept_channels(torch.arange(5), 6)


def test_a_noop_has_no_weights_and_does_nothing(parent: Parent) -> None:
    weights = parent.layer_weights(0)
    assert initial_attention(NoOp(), weights, parent.shape.head_dim) == {}
    assert initial_ffn(NoOp(), weights, torch.arange(parent.shape.intermediate_size)) == {}
    assert not output(parent, Block(NoOp(), NoOp()), {}, 3).any()


def test_the_folder_itself_cannot_be_imported(pytestconfig: pytest.Config) -> None:
    """From the repository root, `import blocks` would make a second copy of every class."""
    root = pytestconfig.rootpath
    if not (root / "blocks").is_dir():
        pytest.skip("no source tree here")
    for name in ("blocks", "solver"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            cwd=root,
            env=os.environ | {"PYTHONSAFEPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"import puzzle.{name}, not {name}" in done.stderr
