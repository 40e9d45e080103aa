"""Generation: what models make of the same beginnings, for people to read side by side."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def continuations(
    model: PreTrainedModel, tokenizer: Any, beginnings: torch.Tensor, *, new_tokens: int
) -> list[str]:
    """The likeliest next tokens, one after another, of every beginning [S, T], as text."""
    found = model.generate(
        beginnings,
        attention_mask=torch.ones_like(beginnings),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(
        found[:, beginnings.shape[1] :], skip_special_tokens=True
    )
    return texts
