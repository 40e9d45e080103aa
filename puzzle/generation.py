"""Generation: texts that models write on from beginnings, to calibrate on or to read side by side.

On a CPU torch's attention makes a block of queries of the one row that a head asks with, and takes
most of the time of many texts at once. Here the query heads of a KV head are the rows of a product.

Legend: B batch, H query heads, G KV heads, T tokens, N tokens asked for at once, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_decode"  # to transformers


def grouped_decode(
    module: nn.Module,
    query_BHND: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [B, N, H, D] as transformers asks for it; of several tokens at once torch's own."""
    batch, heads, count, size = query_BHND.shape
    groups = key_BGTD.shape[1]
    if count > 1:
        arguments = module, query_BHND, key_BGTD, value_BGTD, attention_mask
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            *arguments, scaling=scaling, **options
        )
        return found
    scale = size**-0.5 if scaling is None else scaling
    rows = query_BHND.reshape(batch, groups, heads // groups, size) * scale
    scores = rows @ key_BGTD.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    return (scores.softmax(-1) @ value_BGTD).view(batch, 1, heads, size), None


AttentionInterface.register(GROUPED, grouped_decode)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """The model attends as above where it is on a CPU and would use torch's own attention."""
    own = model.config._attn_implementation
    if own != "sdpa" or model.device.type != "cpu":
        yield
        return
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@torch.inference_mode()
def continued(
    model: PreTrainedModel, beginnings: torch.Tensor, asked: GenerationConfig
) -> torch.Tensor:
    """Token ids [S, T + new] of beginnings [S, T] with what the model adds, as asked alone.

    What is not asked would be filled from the checkpoint's own defaults, were these still there.
    """
    model.generation_config = asked
    with _decoding(model):
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
