"""Evaluation: how far a child is from its parent, and what it can do.

Legend: S sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from puzzle.corpus import Item
from puzzle.export.modeling_puzzle import CACHE, PuzzleForCausalLM
from puzzle.progress import track
from puzzle.spread import std_error

BATCH_TOKENS = 2048
PAIRS_AT_ONCE = 128
Ids = tuple[int, ...]


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
        kl_std_error=std_error(kl),
        perplexity=math.exp(loss.mean()),
        agreement=float(agreement.mean()),
        accuracy=float(right.mean()),
        accuracy_std_error=std_error(right),
        tokens=tokens.numel(),
        items=len(items),
    )


def _answers(model: PuzzleForCausalLM, tokenizer: Any, items: Sequence[Item]) -> Iterator[float]:
    """1.0 for each item whose right word is the likeliest continuation of its definition."""
    pairs = [
        (f"{item.kind}, {item.definition}:", f" {choice}")
        for item in items
        for choice in item.choices
    ]
    likelihoods = iter(continuation_log_likelihoods(model, tokenizer, pairs).tolist())
    for item in items:
        scores = [next(likelihoods) for _ in item.choices]
        yield float(scores.index(max(scores)) == item.answer)


@torch.no_grad()
def continuation_log_likelihoods(
    model: PuzzleForCausalLM, tokenizer: Any, pairs: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """`log p(continuation | prefix)` of each pair, summed over the continuation's tokens.

    A prefix is read once for all its continuations, together with others of its length.
    """
    encoded = [
        tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in pair)
        for pair in pairs
    ]
    rows_by_length = defaultdict(list)
    for row, (prefix, _) in enumerate(encoded):
        rows_by_length[len(prefix)].append(row)
    found = torch.empty(len(pairs))
    for rows in rows_by_length.values():
        for start in range(0, len(rows), PAIRS_AT_ONCE):
            part = rows[start : start + PAIRS_AT_ONCE]
            found[part] = _log_likelihoods(model, *zip(*(encoded[row] for row in part)))
    return found


def _log_likelihoods(
    model: PuzzleForCausalLM, prefixes: Sequence[Ids], continuations: Sequence[Ids]
) -> torch.Tensor:
    """The same for token ids, all prefixes being of one length."""
    distinct = list(dict.fromkeys(prefixes))
    which = torch.tensor([distinct.index(prefix) for prefix in prefixes])
    read = model(torch.tensor(distinct), use_cache=True, logits_to_keep=1)
    read[CACHE].batch_select_indices(which)
    rest = pad_sequence([torch.tensor(ids) for ids in continuations], batch_first=True)
    logits = [read.logits[which]]
    if rest.shape[1] > 1:
        logits.append(model(rest[:, :-1], use_cache=True, cache=read[CACHE]).logits)
    log_p = torch.cat(logits, dim=1).float().log_softmax(-1)
    per_token = log_p.gather(-1, rest[..., None]).squeeze(-1)
    lengths = torch.tensor([len(ids) for ids in continuations])
    return (per_token * (torch.arange(rest.shape[1]) < lengths[:, None])).sum(-1)
