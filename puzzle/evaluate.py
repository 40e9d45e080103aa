"""Evaluation: how far a child is from its parent, and what it can do.

Legend: S sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from puzzle.corpus import Item
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.progress import track

BATCH_TOKENS = 2048
ITEMS_AT_ONCE = 32


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth; KL and perplexity in natural units, shares as fractions."""

    kl: float  # KL(parent || model) per token, 0 for the parent
    kl_std_error: float  # over sequences
    perplexity: float
    agreement: float  # share of positions where parent and model prefer the same next token
    accuracy: float  # on the embedded multiple-choice set
    accuracy_std_error: float
    tokens: int
    items: int


@torch.no_grad()
def evaluate(
    model: PuzzleForCausalLM,
    parent: PuzzleForCausalLM,
    tokens: torch.Tensor,
    *,
    tokenizer: Any,
    items: Sequence[Item],
) -> Evaluation:
    """Compare a model with its parent on token ids [S, T] and on multiple-choice items."""
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    kls, losses, agreements = [], [], []
    for batch in track(tokens.split(size), "evaluate"):
        p = parent(batch, use_cache=False).logits.float().log_softmax(-1)
        q = model(batch, use_cache=False).logits.float().log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1).mean(-1))
        losses.append(-q[:, :-1].gather(-1, batch[:, 1:, None]).mean(dim=(1, 2)))
        agreements.append((p.argmax(-1) == q.argmax(-1)).float().mean(-1))
    kl, loss, agreement = (torch.cat(parts) for parts in (kls, losses, agreements))
    right = torch.tensor(list(_answers(model, tokenizer, items)))
    return Evaluation(
        kl=float(kl.mean()),
        kl_std_error=_std_error(kl),
        perplexity=math.exp(loss.mean()),
        agreement=float(agreement.mean()),
        accuracy=float(right.mean()),
        accuracy_std_error=_std_error(right),
        tokens=tokens.numel(),
        items=len(items),
    )


def _answers(model: PuzzleForCausalLM, tokenizer: Any, items: Sequence[Item]) -> Iterator[float]:
    """1.0 for each item whose right word is the likeliest continuation of its definition."""
    for start in range(0, len(items), ITEMS_AT_ONCE):
        group = items[start : start + ITEMS_AT_ONCE]
        pairs = [
            (f"{item.kind}, {item.definition}:", f" {choice}")
            for item in group
            for choice in item.choices
        ]
        likelihoods = iter(continuation_log_likelihoods(model, tokenizer, pairs).tolist())
        for item in group:
            scores = [next(likelihoods) for _ in item.choices]
            yield float(scores.index(max(scores)) == item.answer)


def continuation_log_likelihoods(
    model: PuzzleForCausalLM, tokenizer: Any, pairs: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """`log p(continuation | prefix)` of each pair, summed over the continuation's tokens."""
    encoded = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
        for pair in pairs
    ]
    length = max(len(prefix) + len(rest) for prefix, rest in encoded)
    tokens = torch.full((len(pairs), length), tokenizer.eos_token_id)
    counted = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (prefix, rest) in enumerate(encoded):
        end = len(prefix) + len(rest)
        tokens[row, :end] = torch.tensor([*prefix, *rest])
        counted[row, len(prefix) : end] = True
    log_p = model(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    per_token = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (per_token * counted[:, 1:]).sum(-1)


def _std_error(values: torch.Tensor) -> float:
    """Of the mean; NaN, unknown, where there is one value."""
    if len(values) < 2:
        return math.nan
    return float(values.std() / math.sqrt(len(values)))
