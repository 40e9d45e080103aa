"""Rewrites for engines that lack a block type leave the logits as they are, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from children import child_logits, parse, random_weights
from transformers import AutoModelForCausalLM

import puzzle
from puzzle.architecture import Architecture
from puzzle.errors import PuzzleError
from puzzle.export.checkpoint import write_checkpoint
from puzzle.export.rewrite import Child, rewrite
from puzzle.export.targets import Target, refusal, served
from puzzle.parent import Parent

# what a child holds -> what vLLM and llama.cpp are given
CASES = {
    "gqa2+ffn96 gqa1+ffn32": ("gqa2+ffn96 gqa1+ffn32", "gqa2+ffn96 gqa1+ffn32"),
    "gqa2+linear gqa1+ffn32": ("gqa2+ffn64 gqa1+ffn32", "gqa2+ffn64 gqa1+ffn32"),
    "gqa2+ffn96 linear+ffn32": ("gqa2+ffn96 noop+ffn64 noop+ffn32", "gqa2+ffn96 linear+ffn32"),
    "gqa2+ffn96 linear+noop": ("gqa2+ffn96 noop+ffn64", "gqa2+ffn96 linear+ffn32"),
    "linear+ffn96 gqa2+noop": (
        "gqa1+ffn64 noop+ffn96 gqa2+noop",
        "gqa1+ffn64 noop+ffn96 gqa2+ffn32",
    ),
    "linear+linear linear+linear": (
        "gqa1+ffn64 noop+ffn64 noop+ffn64 noop+ffn64",
        "gqa1+ffn64 noop+ffn64 linear+ffn64",
    ),
    "noop+ffn96 gqa2+ffn32": ("gqa1+ffn96 gqa2+ffn32",) * 2,
    "noop+noop gqa2+ffn32 noop+noop": ("gqa2+ffn32",) * 2,
    "groups1+ffn96 gqa2+ffn32": ("gqa1+ffn96 gqa2+ffn32", "groups1+ffn96 gqa2+ffn32"),
    "noop+noop noop+noop": ("gqa1+noop", "gqa1+ffn32"),
    "gqa2+noop noop+ffn96 gqa1+noop": (
        "gqa2+noop noop+ffn96 gqa1+noop",
        "gqa2+ffn32 noop+ffn96 gqa1+ffn32",
    ),
}
ENGINES: tuple[Target, ...] = ("vllm", "llama.cpp")


@pytest.fixture(params=["llama", "llama-tied"])
def parent(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Parent:
    """Without biases and tied embeddings, and with both."""
    return Parent(checkpoints[request.param], request.param)


def child(parent: Parent, text: str) -> Child:
    return Child(parent.config, parse(text), random_weights(parent.config, parse(text)))


def logits(model: Child, tokens: torch.Tensor) -> torch.Tensor:
    return child_logits(model.config, model.blocks, model.weights, tokens)


@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("text", CASES)
def test_a_rewritten_child_gives_the_same_logits(
    text: str, target: Target, parent: Parent, tokens: torch.Tensor
) -> None:
    made = child(parent, text)
    found = rewrite(made, target)
    native = CASES[text][ENGINES.index(target)]
    assert " ".join(map(str, found.blocks)) == native
    assert torch.equal(logits(found, tokens), logits(made, tokens))
    assert not any(refusal(target, *layer) for layer in enumerate(found.blocks))


@pytest.mark.parametrize("text", CASES)
def test_the_written_folder_gives_the_childs_logits(
    text: str, parent: Parent, tokens: torch.Tensor, tmp_path: Path
) -> None:
    puzzle.register()
    made = child(parent, text)
    whole = Architecture("tiny", made.blocks)
    write_checkpoint(tmp_path / "x", parent, whole, made.weights, card="", target="vllm")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32).eval()
    assert not any(block["ffn"]["replace_with_linear"] for block in loaded.config.block_configs)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, logits(made, tokens), rtol=1e-5, atol=1e-5
        )


def test_hugging_face_needs_no_rewrite_and_nothing_is_changed(parent: Parent) -> None:
    made = child(parent, "linear+linear noop+noop")
    before = {name: tensor.clone() for name, tensor in made.weights.items()}
    assert rewrite(made, "hf") is made
    rewrite(made, "vllm")
    assert made.weights.keys() == before.keys()
    assert all(torch.equal(made.weights[name], before[name]) for name in before)
    assert made.config.mlp_bias == (parent.name == "llama-tied")


@pytest.mark.parametrize("target", ENGINES)
def test_what_no_rewrite_expresses_is_one_sentence(target: Target, parent: Parent) -> None:
    made = child(parent, "gqa2+ffn96 gqa2w12+ffn32")
    sentence = r"cannot serve this child: layer 1 would hold gqa2w12\+ffn32, .* the window"
    with pytest.raises(PuzzleError, match=sentence):
        rewrite(made, target)


@pytest.mark.parametrize("target", ENGINES)
def test_other_families_are_refused(target: Target, checkpoints: dict[str, Path]) -> None:
    parent = Parent(checkpoints["qwen3"], "qwen3")
    with pytest.raises(PuzzleError, match=r"llama parents only, .* 'qwen3'; take the target hf"):
        rewrite(child(parent, "gqa2+ffn96"), target)


def test_prices_are_of_what_is_written() -> None:
    """llama.cpp is given zeros where attention stands alone, and widths as they are."""
    for text, target, native in (
        ("gqa2+noop", "llama.cpp", "gqa2+ffn32"),
        ("noop+noop", "llama.cpp", "noop+noop"),
        ("gqa2+ffn300", "llama.cpp", "gqa2+ffn300"),
        ("gqa2+noop", "vllm", "gqa2+noop"),
        ("gqa2+ffn300", "vllm", "gqa2+ffn512"),
    ):
        assert served("llama", *parse(text), target) == parse(native)[0]  # type: ignore[arg-type]
