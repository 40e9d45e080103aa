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

from puzzle import checks
from puzzle.checkpoints import Checkpoints, Losses
from puzzle.config import Heal
from puzzle.device import at_once, fast_products, multiplied_in, seeded
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.objective import Objective
from puzzle.progress import track
from puzzle.ranks import here
from puzzle.schedule import Step, batch, schedule
from puzzle.shards import release

MICRO_TOKENS = 1024  # of one pass
CLIP = 1.0  # of the gradient norm
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Progress:
    """A step that is done: its number from 1, tokens read so far, and its mean losses."""

    step: int
    tokens: int
    losses: dict[str, float]
    student: PuzzleForCausalLM


@dataclass(frozen=True)
class Texts:
    """Token ids [S, T] to train on, and to judge by."""

    training_ST: torch.Tensor
    validation_ST: torch.Tensor | None = None


@dataclass
class Training:
    """The training of an objective's student, in place.

    `dtype` is that of the arithmetic; parameters and moments stay as the student has them.
    """

    objective: Objective
    texts: Texts
    options: Heal
    checkpoints: Checkpoints
    dtype: torch.dtype
    losses: Losses = field(default_factory=list)  # of the steps that are done

    def run(self) -> Iterator[Progress]:
        """Train from the last checkpoint on; yields after every step, before its checkpoint."""
        student, length = self.objective.student, self.texts.training_ST.shape[1]
        optimizer = torch.optim.AdamW(
            student.parameters(), betas=BETAS, weight_decay=0.0, fused=True
        )
        steps = schedule(self.options, length)
        self.losses = self.checkpoints.resume(student, optimizer)
        read = sum(step.count for step in steps[: len(self.losses)])
        for step in track(steps[len(self.losses) :], "heal"):
            if checks.ended(self.losses, self.options.patience):
                break
            self.losses.append(self._step(optimizer, step))
            if checks.due(len(self.losses), len(steps), self.options.checks):
                self._check()
            read += step.count
            yield Progress(len(self.losses), read * length, self.losses[-1], student)
            if self.checkpoints.due:
                self.checkpoints.save(student, optimizer, self.losses)
        best = checks.best(self.losses)
        if best and best < len(self.losses):
            self.checkpoints.recall(student, best)

    def _step(self, optimizer: torch.optim.Optimizer, step: Step) -> dict[str, float]:
        """One update; returns its mean losses before their factors, and its learning rate."""
        rate = self.options.learning_rate * step.rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        with fast_products(), seeded(len(self.losses)):  # what drops out, where a model has that
            losses = self._pass(batch(self.texts.training_ST, step), learn=True)
        torch.nn.utils.clip_grad_norm_(self.objective.student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return {**losses, "learning_rate": rate}

    def _pass(self, batch_ST: torch.Tensor, *, learn: bool) -> dict[str, float]:
        """The mean losses of a batch, a few sequences at a time; their gradients are added up."""
        device = self.objective.device
        size = max(1, at_once(MICRO_TOKENS) // batch_ST.shape[1])
        totals: Counter[str] = Counter()
        for tokens_ST, share_S in zip(*(part.split(size) for part in _mine(batch_ST))):
            with torch.set_grad_enabled(learn), multiplied_in(self.dtype):
                loss, parts = self.objective(tokens_ST.to(device), share_S.to(device))
            if learn:
                loss.backward()
            totals.update({name: float(part) for name, part in parts.items()})
        return here().mean(dict(totals))

    def _check(self) -> None:
        """Judge the student by the validation text, and keep it where it is the best so far."""
        assert self.texts.validation_ST is not None
        self.objective.eval()
        found = self._pass(self.texts.validation_ST, learn=False)
        self.objective.train()
        release(self.objective)
        self.losses[-1][checks.CHECKED] = checks.judged(found)
        if checks.best(self.losses) == len(self.losses):
            self.checkpoints.keep(self.objective.student, len(self.losses))


def _mine(batch_ST: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's sequences, and what a token of each counts.

    Gradients are means over ranks, so shares are `world` times those of the batch. Every rank takes
    equally many sequences: where they do not come out even, one is read again and counts nothing.
    """
    rank, world = here().rank, here().world
    places = torch.arange(rank, -(-len(batch_ST) // world) * world, world)
    share_S = (places < len(batch_ST)) * (world / batch_ST.numel())
    return batch_ST[places % len(batch_ST)], share_S
