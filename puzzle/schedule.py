"""What each step of a training reads and how fast it learns: functions of the step alone.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from puzzle.config import Heal, Phase
from puzzle.device import shuffled
from puzzle.errors import PuzzleError

WARMUP = 0.1  # of the steps


@dataclass(frozen=True)
class Step:
    """Sequences `first` to `first + count` of the endless text, cut to `length` tokens each."""

    first: int
    count: int
    length: int
    rate: float  # of learning, as a share of its peak


def schedule(options: Heal, length: int) -> list[Step]:
    """Every step on text in sequences of `length` tokens, phase after phase.

    Raises:
        PuzzleError: a phase shorter than its batch, or whose sequences do not divide the text's.
    """
    phases = options.schedule or (Phase(),)
    whole = sum(phase.share for phase in phases)
    sizes, first = [], 0
    for phase in phases:
        cut = phase.sequence_length or length
        if length % cut:
            raise PuzzleError(
                f"heal.schedule has sequences of {cut} tokens, the text comes in sequences of "
                f"{length}; choose a divisor of that, or another sequence_length"
            )
        count = max(1, (phase.batch_tokens or options.batch_tokens) // length)
        tokens = round(options.tokens * phase.share / whole)
        steps = tokens // (count * length)
        if options.tokens and not steps:
            raise PuzzleError(
                f"{tokens} tokens of healing are less than one batch of {count * length}; raise "
                "heal.tokens (or the phase's share), or lower heal.batch_tokens"
            )
        sizes += [(first + step * count, count, cut) for step in range(steps)]
        first += steps * count
    return [Step(*size, rate(step, len(sizes))) for step, size in enumerate(sizes)]


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def batch(tokens_ST: torch.Tensor, step: Step) -> torch.Tensor:
    """The token ids a step trains on, [sequences, step.length]."""
    picks = sequences(len(tokens_ST), step.first, step.count)
    return tokens_ST[picks].view(-1, step.length)


def sequences(count: int, first: int, wanted: int) -> torch.Tensor:
    """Which of `count` sequences stand at these places of the endless text.

    The text is read again and again, each time in another order.
    """
    epochs = range(first // count, (first + wanted - 1) // count + 1)
    orders = [shuffled(count, torch.Generator().manual_seed(epoch)) for epoch in epochs]
    skipped = first % count
    return torch.cat(orders)[skipped : skipped + wanted]
