"""The exported module beside transformers' own: its loss, its windows, what it keeps in memory."""

from __future__ import annotations

import runpy
import weakref
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface

from puzzle.blocks.variant import Block
from puzzle.export import modeling_puzzle
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.hardware.measure import random_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
FAMILIES = ["llama", "nemotron", "mistral", "qwen2", "qwen3"]
TO = {"dtype": torch.float32, "device": "cpu"}
WINDOWED = ["gqa2w4+ffn48", "gqa1w4+ffn48", "gqa2+ffn48"]


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "5.9.0.dev0"])
def test_transformers_that_are_too_old_are_told_so_at_import(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(
        ImportError, match=f"needs transformers 5.17 or later, found {version}; run"
    ):
        runpy.run_path(modeling_puzzle.__file__)


def child(family: str, blocks: list[str]) -> PuzzleForCausalLM:
    config = transformers.AutoConfig.for_model(family, **SIZES)
    torch.manual_seed(0)
    model = random_model(config, list(map(Block.parse, blocks)), TO)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model.eval()


def seeing(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """Attention that sees back as far as it is told, the mask being left aside, as flash's is."""
    window = options.get("sliding_window")
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    rows, columns = (torch.arange(each.shape[2])[:, None] for each in (query, key))
    seen = rows >= columns.T
    if window is not None:
        seen &= rows - window < columns.T
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return output.transpose(1, 2), None


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_that_take_windows_and_no_masks_are_told_the_windows(family: str) -> None:
    AttentionInterface.register("seeing", seeing)
    model, tokens = child(family, WINDOWED), torch.arange(12)[None]
    with torch.no_grad():
        wanted = model(tokens).logits
        model.set_attn_implementation("seeing")
        found = model(tokens).logits
    assert torch.allclose(found, wanted, atol=1e-4)


def test_another_attention_reaches_every_layer() -> None:
    model = child("llama", ["gqa2+ffn48", "linear+ffn48", "gqa1+noop"])
    used: list[int] = []

    def watching(module: Any, *said: Any, **options: Any) -> Any:
        used.append(module.layer_idx)
        return seeing(module, *said, **options)

    AttentionInterface.register("watching", watching)
    model.set_attn_implementation("watching")
    with torch.no_grad():
        model(torch.arange(12)[None])
    assert len(used) == 2


def test_a_loss_over_several_batches_counts_their_tokens() -> None:
    """As transformers' own: its trainer divides by the tokens of all batches of a step."""
    model = child("llama", ["gqa2+ffn48", "gqa2+ffn48", "gqa2+ffn48"])
    tokens = torch.arange(40).view(4, 10)
    with torch.no_grad():
        whole = model(tokens, labels=tokens).loss
        count = tokens[:, 1:].numel()
        parts = [model(one[None], labels=one[None], num_items_in_batch=count) for one in tokens]
    assert sum(part.loss for part in parts) == pytest.approx(float(whole), rel=1e-5)


def test_streams_are_kept_only_where_they_are_asked_for() -> None:
    model = child("llama", ["gqa2+ffn48", "gqa2+ffn48", "gqa2+ffn48"])
    left: list[weakref.ref[torch.Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *said: left.append(weakref.ref(said[-1])))
    alive: list[int] = []
    count = lambda *_: alive.append(sum(stream() is not None for stream in left))  # noqa: E731
    model.model.norm.register_forward_hook(count)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        model(tokens)
        streams = model(tokens, output_hidden_states=True).hidden_states
    assert alive[0] == 1
    assert len(streams) == 4
    assert torch.equal(streams[0], model.model.embed_tokens(tokens))
