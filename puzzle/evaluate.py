"""Evaluation: how far a child is from its parent, and what it can do.

Legend: S sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from puzzle.corpus import Item
from puzzle.export.modeling_puzzle import CACHE
from puzzle.progress import track
from puzzle.spread import std_error

BATCH_TOKENS = 2048  # of one forward pass
LOGIT_BYTES = 2**26  # of one model's logits at a time, so that [B, T, V] is never whole
PAIRS_AT_ONCE = 128
TOP = 5
Ids = tuple[int, ...]
Values = dict[str, torch.Tensor]  # metric -> a value for each sequence [S]


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth; KL and perplexity in natural units, shares as fractions."""

    kl: float  # KL(parent || model) per token, 0 for the parent
    kl_std_error: float  # over sequences
    perplexity: float
    perplexity_std_error: float
    agreement: float  # share of positions where parent and model prefer the same next token
    agreement_std_error: float
    top_agreement: float  # share of the parent's TOP likeliest tokens among the model's
    top_agreement_std_error: float
    accuracy: float  # on the embedded multiple-choice set
    accuracy_std_error: float
    tokens: int
    items: int

    @classmethod
    def of(cls, text: Values, right: torch.Tensor, reading: Reading) -> Evaluation:
        """Means and standard errors of `by_sequence` and `answers`."""
        perplexity = math.exp(text["loss"].mean())
        return cls(
            kl=float(text["kl"].mean()),
            kl_std_error=std_error(text["kl"]),
            perplexity=perplexity,
            perplexity_std_error=perplexity * std_error(text["loss"]),
            agreement=float(text["agreement"].mean()),
            agreement_std_error=std_error(text["agreement"]),
            top_agreement=float(text["top_agreement"].mean()),
            top_agreement_std_error=std_error(text["top_agreement"]),
            accuracy=float(right.mean()),
            accuracy_std_error=std_error(right),
            tokens=reading.tokens.numel(),
            items=len(right),
        )


@dataclass(frozen=True)
class Reading:
    """A parent and the token ids [S, T] it reads: once, however many models are compared."""

    parent: PreTrainedModel
    tokens: torch.Tensor

    @cached_property
    @torch.no_grad()
    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Token ids and what the parent's head multiplies [S, T, D], one forward pass each."""
        size = max(1, BATCH_TOKENS // self.tokens.shape[1])
        parts = track(self.tokens.split(size), "read")
        return [(part, _hidden(self.parent, part)) for part in parts]


def evaluate(
    model: PreTrainedModel, reading: Reading, *, tokenizer: Any, items: Sequence[Item]
) -> Evaluation:
    """Compare a model with its parent on a text the parent has read, and on questions."""
    return Evaluation.of(by_sequence(model, reading), answers(model, tokenizer, items), reading)


@torch.no_grad()
def by_sequence(model: PreTrainedModel, reading: Reading) -> Values:
    """Each metric of the text on every sequence, a mean over its positions [S]."""
    batches = [
        _compare(model, reading.parent, *batch) for batch in track(reading.batches, "evaluate")
    ]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _compare(
    model: PreTrainedModel, parent: PreTrainedModel, batch: torch.Tensor, wanted: torch.Tensor
) -> Values:
    """Each metric's mean over the positions of each sequence of a batch [S, T]."""
    given = wanted if model is parent else _hidden(model, batch)
    following = batch.roll(-1, dims=1)
    heads = parent.get_output_embeddings(), model.get_output_embeddings()
    size = max(1, LOGIT_BYTES // (4 * _vocabulary(parent) * len(batch)))
    parts = [
        _compare_positions(
            heads, *(each[:, start : start + size] for each in (wanted, given, following))
        )
        for start in range(0, batch.shape[1], size)
    ]
    values = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    values["loss"] = values["loss"][:, :-1]  # what follows the last token is not known
    return {name: value.mean(dim=-1) for name, value in values.items()}


def _vocabulary(model: PreTrainedModel) -> int:
    """How many tokens a model tells apart."""
    return len(model.get_output_embeddings().weight)


def _hidden(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """What the head multiplies with [S, T, D]."""
    hidden: torch.Tensor = model.base_model(batch, use_cache=False).last_hidden_state
    return hidden


def _compare_positions(
    heads: tuple[nn.Module, nn.Module],
    wanted: torch.Tensor,
    given: torch.Tensor,
    following: torch.Tensor,
) -> Values:
    """The metrics at every one of these positions [S, T]."""
    log_p, log_q = (
        head(hidden).float().log_softmax(-1) for head, hidden in zip(heads, (wanted, given))
    )
    best_p, best_q = (log.topk(min(TOP, log.shape[-1]), dim=-1).indices for log in (log_p, log_q))
    shared = (best_p[..., :, None] == best_q[..., None, :]).any(-1)
    return {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "loss": -log_q.gather(-1, following[..., None]).squeeze(-1),
        "agreement": (log_p.argmax(-1) == log_q.argmax(-1)).float(),
        "top_agreement": shared.float().mean(-1),
    }


def answers(model: PreTrainedModel, tokenizer: Any, items: Sequence[Item]) -> torch.Tensor:
    """1.0 for each item whose right word is the likeliest continuation of its definition."""
    pairs = [
        (f"{item.kind}, {item.definition}:", f" {choice}")
        for item in items
        for choice in item.choices
    ]
    likelihoods = iter(continuation_log_likelihoods(model, tokenizer, pairs).tolist())
    scores = [[next(likelihoods) for _ in item.choices] for item in items]
    right = [each.index(max(each)) == item.answer for each, item in zip(scores, items)]
    return torch.tensor(right, dtype=torch.float32)


@torch.no_grad()
def continuation_log_likelihoods(
    model: PreTrainedModel, tokenizer: Any, pairs: Sequence[tuple[str, str]]
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
    longest = max((len(continuation) for _, continuation in encoded), default=1)
    fitting = LOGIT_BYTES // (4 * _vocabulary(model) * longest)
    size = max(1, min(PAIRS_AT_ONCE, fitting))
    for rows in rows_by_length.values():
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            found[part] = _log_likelihoods(model, *zip(*(encoded[row] for row in part)))
    return found


def _log_likelihoods(
    model: PreTrainedModel, prefixes: Sequence[Ids], continuations: Sequence[Ids]
) -> torch.Tensor:
    """The same for token ids, all prefixes being of one length."""
    distinct = list(dict.fromkeys(prefixes))
    which = torch.tensor([distinct.index(prefix) for prefix in prefixes])
    read = model(torch.tensor(distinct), use_cache=True, logits_to_keep=1)
    read[CACHE].batch_select_indices(which)
    rest = pad_sequence([torch.tensor(ids) for ids in continuations], batch_first=True)
    logits = [read.logits[which]]
    if rest.shape[1] > 1:
        logits.append(model(rest[:, :-1], use_cache=True, **{CACHE: read[CACHE]}).logits)
    log_p = torch.cat(logits, dim=1).float().log_softmax(-1)
    per_token = log_p.gather(-1, rest[..., None]).squeeze(-1)
    lengths = torch.tensor([len(ids) for ids in continuations])
    return (per_token * (torch.arange(rest.shape[1]) < lengths[:, None])).sum(-1)
