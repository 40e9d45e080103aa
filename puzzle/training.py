"""The training loop: batches in, steps out, from the last checkpoint on.

Each step is a function of the parameters, the moments and its number, so a training that was
killed goes on to the bits of one that was not, at equally many ranks and threads.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from puzzle.checkpoints import Checkpoints, Losses
from puzzle.config import Heal
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.objective import Objective
from puzzle.progress import track
from puzzle.ranks import here
from puzzle.schedule import batch, schedule

MICRO_TOKENS = 1024  # of one backward pass
CLIP = 1.0  # of the gradient norm
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Progress:
    """A step that is done: its number from 1, tokens seen so far, and its mean losses."""

    step: int
    tokens: int
    losses: dict[str, float]
    student: PuzzleForCausalLM


@dataclass
class Training:
    """The training of an objective's student, in place, on token ids [S, T].

    `dtype` is that of the arithmetic; parameters and moments stay as the student has them.
    """

    objective: Objective
    tokens_ST: torch.Tensor
    options: Heal
    checkpoints: Checkpoints
    dtype: torch.dtype
    losses: Losses = field(default_factory=list)  # of the steps that are done

    def run(self) -> Iterator[Progress]:
        """Train from the last checkpoint on; yields after every step, before its checkpoint."""
        student, length = self.objective.student, self.tokens_ST.shape[1]
        optimizer = torch.optim.AdamW(
            student.parameters(), betas=BETAS, weight_decay=0.0, fused=True
        )
        steps = schedule(self.options, length)
        self.losses = self.checkpoints.resume(student, optimizer)
        seen = sum(step.count for step in steps[: len(self.losses)])
        for step in track(steps[len(self.losses) :], "heal"):
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * step.rate
            whole = batch(self.tokens_ST, step)
            self.losses.append(update(self.objective, optimizer, whole, self.dtype))
            seen += step.count
            yield Progress(len(self.losses), seen * length, self.losses[-1], student)
            if self.checkpoints.due:
                self.checkpoints.save(student, optimizer, self.losses)


def update(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch_ST: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, float]:
    """One update from a batch, a few sequences at a time; returns its mean losses."""
    device = objective.device
    tokens_ST, share_S = _mine(batch_ST)
    size = max(1, MICRO_TOKENS // batch_ST.shape[1])
    totals: Counter[str] = Counter()
    for tokens, share in zip(tokens_ST.split(size), share_S.split(size)):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, parts = objective(tokens.to(device), share.to(device))
        loss.backward()
        totals.update({name: float(part) for name, part in parts.items()})
    torch.nn.utils.clip_grad_norm_(objective.student.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return here().mean(dict(totals))


def _mine(batch_ST: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's sequences, and what a token of each counts.

    Gradients are means over ranks, so shares are `world` times those of the batch. Every rank takes
    equally many sequences: where they do not come out even, one is read again and counts nothing.
    """
    rank, world = here().rank, here().world
    places = torch.arange(rank, -(-len(batch_ST) // world) * world, world)
    share_S = (places < len(batch_ST)) * (world / batch_ST.numel())
    return batch_ST[places % len(batch_ST)], share_S
