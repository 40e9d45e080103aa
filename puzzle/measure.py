"""Measure: children run for real, all together, and compared with the parent.

A child's stream is the parent's up to the first layer where they differ, so it starts there, from
the trace. Children travel up side by side: those that begin alike share a stream, every block of a
layer is loaded once for all streams that pass through it, and what the parent says of a sequence
is computed once. Children are taken in groups whose streams fit in memory.

Legend: S sequences, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from puzzle import records
from puzzle.assemble import assemble, from_weights
from puzzle.blocks.variant import Block
from puzzle.device import at_once
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.library import Library
from puzzle.modules import Weights
from puzzle.progress import track
from puzzle.swap import Blocks

BATCH_TOKENS = 2048  # of one forward pass
GROUP_BYTES = 2**30  # of the streams that travel together
Values = dict[str, torch.Tensor]  # metric -> its mean over the tokens of each sequence [S]


@dataclass(frozen=True)
class Reference:
    """One sequence: its tokens [T], and the parent's log-probabilities of the next [T, V]."""

    tokens: torch.Tensor
    log_p: torch.Tensor

    @cached_property
    def p(self) -> torch.Tensor:
        """The parent's probabilities [T, V]."""
        return self.log_p.exp()

    @cached_property
    def negentropy(self) -> torch.Tensor:
        """`sum p log p` [T]."""
        return torch.einsum("tv,tv->t", self.p, self.log_p)

    @cached_property
    def favorite(self) -> torch.Tensor:
        """The parent's likeliest next tokens [T]."""
        return self.log_p.argmax(dim=-1)


# The reference and a child's log-probabilities [T, V] -> a value for each token, [T] or fewer.
Metric = Callable[[Reference, torch.Tensor], torch.Tensor]


def kl(reference: Reference, log_q: torch.Tensor) -> torch.Tensor:
    """KL(parent || child), in nats."""
    return reference.negentropy - torch.einsum("tv,tv->t", reference.p, log_q)


def lm_loss(reference: Reference, log_q: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the text's own next token, in nats."""
    return -log_q[:-1].gather(-1, reference.tokens[1:, None]).squeeze(-1)


def agreement(reference: Reference, log_q: torch.Tensor) -> torch.Tensor:
    """1 where parent and child prefer the same next token."""
    return (reference.favorite == log_q.argmax(dim=-1)).float()


METRICS: Mapping[str, Metric] = {"kl": kl, "lm_loss": lm_loss, "agreement": agreement}
WHOLE = slice(None)


@dataclass(frozen=True)
class _Text:
    """Some sequences of a traced split: token ids [S, T], and the parent's streams [S, T, D]."""

    library: Library
    split: str
    part: slice

    @property
    def tokens(self) -> torch.Tensor:
        return self.library.run.load_tensors(records.tokens(self.split))["tokens"][self.part]

    def stream(self, layer: int) -> torch.Tensor:
        name = records.hidden(self.split, layer)
        return self.library.run.load_tensors(name)["h"][self.part]


@torch.no_grad()
def measure(
    library: Library,
    children: Sequence[Blocks],
    metrics: Mapping[str, Metric] = METRICS,
    split: str = "scoring",
    part: slice = WHOLE,
) -> Iterator[tuple[Blocks, Values]]:
    """Each distinct child with what it is worth on a traced split, as its group is done.

    Args:
        metrics: name -> a function of the reference and the child's log-probabilities.
        part: the sequences of the split that are run.
    """
    own, text = library.parent.blocks, _Text(library, split, part)
    waiting = sorted(dict.fromkeys(children), key=lambda child: _start(own, child))
    enter = text.stream(0)
    size = max(1, GROUP_BYTES // (enter.numel() * enter.element_size()))
    for first in range(0, len(waiting), size):
        group = waiting[first : first + size]
        streams = _carry(text, group)
        found = _compare(text, [streams[child] for child in group], metrics)
        yield from zip(group, found)


@torch.no_grad()
def kl_of(library: Library, model: nn.Module) -> float:
    """KL(parent || model) per token of a whole model on the traced scoring text."""
    head, text = library.parent.head(), _Text(library, "scoring", WHOLE)
    kls = []
    for tokens_T, leave_TD in zip(text.tokens, text.stream(len(library.parent.blocks))):
        reference = Reference(tokens_T, _log_probabilities(head, leave_TD))
        logits_TV = model(tokens_T[None], use_cache=False).logits[0]
        kls.append(kl(reference, logits_TV.float().log_softmax(dim=-1)).mean())
    return float(torch.stack(kls).mean())


def nearest(library: Library, blocks: Blocks, mended: Weights) -> PuzzleForCausalLM:
    """The assembled child of these blocks, or the mended one: the nearer on the scoring text."""
    models = assemble(library, blocks), from_weights(library, blocks, mended)
    return min(models, key=partial(kl_of, library))


def _start(own: Blocks, child: Blocks) -> int:
    """The first layer where a child differs from the parent; the number of layers if none."""
    return next(
        (layer for layer, pair in enumerate(zip(own, child)) if pair[0] != pair[1]), len(own)
    )


def _carry(text: _Text, children: Sequence[Blocks]) -> dict[Blocks, torch.Tensor]:
    """The stream [S, T, D] each child leaves the last layer with."""
    library = text.library
    own, layers = library.parent.blocks, len(library.parent.blocks)
    first = min(_start(own, child) for child in children)
    streams: dict[Blocks, torch.Tensor] = {own[:first]: text.stream(first)}
    for layer in track(range(first, layers), "measure"):
        passing: dict[Block, list[Blocks]] = {}
        for prefix in dict.fromkeys(child[: layer + 1] for child in children):
            if prefix != own[: layer + 1]:
                passing.setdefault(prefix[-1], []).append(prefix)
        above = {
            prefix: output
            for block, prefixes in passing.items()
            for prefix, output in zip(
                prefixes, _forward(library, layer, block, [streams[p[:-1]] for p in prefixes])
            )
        }
        streams = above | {own[: layer + 1]: text.stream(layer + 1)}
    return streams


def _forward(
    library: Library, layer: int, block: Block, streams: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """What one block makes of each of these streams [S, T, D]."""
    module = library.layer(layer, block)
    context = library.parent.context(streams[0][:1], module.window)
    size = max(1, at_once(BATCH_TOKENS) // streams[0].shape[1])
    for stream in streams:
        yield torch.cat([module(batch, **context) for batch in stream.split(size)])


def _compare(
    text: _Text, streams: Sequence[torch.Tensor], metrics: Mapping[str, Metric]
) -> list[Values]:
    """The metrics of each stream that leaves the last layer [S, T, D]."""
    parent = text.library.parent
    head, tokens_ST, leave_STD = parent.head(), text.tokens, text.stream(len(parent.blocks))
    rows: list[dict[str, list[torch.Tensor]]] = [{name: [] for name in metrics} for _ in streams]
    for sequence in track(range(len(leave_STD)), "compare"):
        reference = Reference(tokens_ST[sequence], _log_probabilities(head, leave_STD[sequence]))
        for row, stream_STD in zip(rows, streams):
            log_q = _log_probabilities(head, stream_STD[sequence])
            for name, metric in metrics.items():
                row[name].append(metric(reference, log_q).mean())
    return [{name: torch.stack(values) for name, values in row.items()} for row in rows]


def _log_probabilities(head: nn.Module, stream_TD: torch.Tensor) -> torch.Tensor:
    return head(stream_TD).float().log_softmax(dim=-1)
