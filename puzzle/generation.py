"""Generation: what models make of the same beginnings, for people to read side by side."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


@torch.inference_mode()
def continued(
    model: PreTrainedModel, beginnings: torch.Tensor, asked: GenerationConfig
) -> torch.Tensor:
    """Token ids [S, T + new] of beginnings [S, T] with what the model adds, as asked alone.

    What is not asked would be filled from the checkpoint's own defaults, were these still there.
    """
    model.generation_config = asked
    found: torch.Tensor = model.generate(beginnings, attention_mask=torch.ones_like(beginnings))
    return found


def continuations(
    model: PreTrainedModel, tokenizer: Any, beginnings: torch.Tensor, *, new_tokens: int
) -> list[str]:
    """The likeliest next tokens, one after another, of every beginning [S, T], as text."""
    end = tokenizer.eos_token_id
    asked = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end
    )
    found = continued(model, beginnings, asked)
    texts: list[str] = tokenizer.batch_decode(
        found[:, beginnings.shape[1] :], skip_special_tokens=True
    )
    return texts
