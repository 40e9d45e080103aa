"""Fused FFNs compute the sum of the FFNs they stand for, and only runs without attention fuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import child_logits, parse, random_weights

from puzzle.errors import PuzzleError
from puzzle.export.rewrite import Child, rewrite
from puzzle.fuse import fuse, runs
from puzzle.modules import build_layer
from puzzle.parent import Parent

TEXT = "gqa2+ffn96 noop+ffn32 noop+noop noop+ffn64 noop+ffn96 gqa1+ffn32"


@pytest.fixture(params=["llama", "llama-tied", "mistral", "qwen2", "qwen3"])
def child(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Child:
    """A child with a run of three FFNs."""
    config = Parent(checkpoints[request.param], request.param).config
    return Child(config, parse(TEXT), random_weights(config, parse(TEXT)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, [[1, 3]]),
        ("noop+ffn8 noop+ffn8", []),  # the last stays, and one alone is as it was
        ("gqa1+ffn8 noop+ffn8 noop+ffn8 gqa1+ffn8", []),
        ("noop+ffn8 noop+ffn8 noop+ffn8", [[0, 1]]),
        ("noop+ffn8 noop+ffn8 noop+linear noop+ffn8 noop+ffn8 noop+ffn8 noop+ffn8", [[3, 4, 5]]),
        ("noop+ffn8 " * 3 + "gqa1+noop " + "noop+ffn8 " * 4, [[0, 1], [4, 5, 6]]),
        ("noop+noop noop+noop", []),
    ],
)
def test_runs_are_of_ffns_without_attention_and_without_their_last(
    text: str, expected: list[list[int]]
) -> None:
    assert runs(parse(text)) == expected


def test_a_fused_ffn_is_the_sum_of_those_side_by_side(child: Child) -> None:
    made = fuse(child)
    assert " ".join(map(str, made.blocks)) == (
        "gqa2+ffn96 noop+ffn96 noop+noop noop+noop noop+ffn96 gqa1+ffn32"
    )
    stream = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))

    def added(of: Child, layer: int) -> torch.Tensor:
        held = of.layers()[layer]
        return build_layer(of.config, held.block, held.weights).feed(stream) - stream

    both = added(child, 1) + added(child, 3)
    torch.testing.assert_close(added(made, 1), both, rtol=1e-5, atol=1e-5)
    one_after_another = build_layer(child.config, child.blocks[3], child.layers()[3].weights)
    assert (one_after_another.feed(stream + added(child, 1)) - stream - both).abs().max() > 1e-2


def test_without_a_run_the_child_stays_and_what_is_given_is_not_changed(
    child: Child, tokens: torch.Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in child.weights.items()}
    fuse(child)
    assert all(torch.equal(child.weights[name], before[name]) for name in before)
    short = parse("gqa2+ffn96 noop+ffn32 noop+ffn96")
    plain = replace(child, blocks=short, weights=random_weights(child.config, short))
    made = fuse(plain)
    assert made.blocks == short
    assert all(torch.equal(made.weights[name], plain.weights[name]) for name in plain.weights)


def test_a_fused_child_is_exported_like_any(child: Child, tokens: torch.Tensor) -> None:
    if child.config.model_type != "llama":
        pytest.skip("served by Hugging Face alone")
    made = fuse(child)
    served = rewrite(made, "vllm")
    assert len(served.blocks) == 4
    assert torch.equal(
        child_logits(served.config, served.blocks, served.weights, tokens),
        child_logits(made.config, made.blocks, made.weights, tokens),
    )


def test_other_ffns_are_refused(checkpoints: dict[str, Path]) -> None:
    config = Parent(checkpoints["nemotron"], "nemotron").config
    with pytest.raises(PuzzleError, match="family 'nemotron' are not fused, those of llama, "):
        fuse(Child(config, parse(TEXT), random_weights(config, parse(TEXT))))
