"""Texts that models write on, against whole forwards of plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from puzzle.generation import GROUPED, continued

NEW = 10


@pytest.fixture
def asked() -> transformers.GenerationConfig:
    return transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)


def test_every_family_goes_on_as_in_whole_forwards(
    family: str,
    checkpoints: dict[str, Path],
    tokens: torch.Tensor,
    asked: transformers.GenerationConfig,
) -> None:
    """Also where windows of 8 tokens hide the first ones."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints[family]).eval()
    own, used = model.config._attn_implementation, set[str]()
    model.register_forward_hook(lambda *_: used.add(model.config._attn_implementation))
    found = continued(model, tokens[:, :12], asked)
    assert used == {own if family == "gpt_oss" else GROUPED}
    assert model.config._attn_implementation == own
    with torch.no_grad():
        whole = model(found[:, :-1]).logits[:, 11:].argmax(-1)
    assert torch.equal(found[:, 12:], whole)


def test_a_model_with_attention_of_its_own_keeps_it(
    checkpoints: dict[str, Path], tokens: torch.Tensor, asked: transformers.GenerationConfig
) -> None:
    model, eager = (
        transformers.AutoModelForCausalLM.from_pretrained(
            checkpoints["llama"], attn_implementation=kind
        ).eval()
        for kind in ("sdpa", "eager")
    )
    used = set[str]()
    eager.register_forward_hook(lambda *_: used.add(eager.config._attn_implementation))
    found = [continued(each, tokens[:, :12], asked) for each in (model, eager)]
    assert used == {"eager"}
    assert torch.equal(*found)
