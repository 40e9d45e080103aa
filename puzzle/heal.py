"""Healing: global knowledge distillation of the whole child from the parent.

`L = cosine sum_layers mean_tokens (1 - cos(h_c, h_p)) + kl mean_tokens KL(p || c)`, no language
modeling loss (Puzzle, arXiv 2411.19146, section 5: the best of its ablation). Training is resumed
from the last checkpoint to the same result: batches depend on the step alone.

Legend: S sequences, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from puzzle import records
from puzzle.config import Heal
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.modules import Weights
from puzzle.progress import track
from puzzle.run import Run

WARMUP = 0.1  # of the steps
MICRO_TOKENS = 1024  # of one backward pass; bounds the logits in memory
CHECKPOINT_S = 30.0  # between checkpoints
CLIP = 1.0  # of the gradient norm


@dataclass(frozen=True)
class Course:
    """Where a healing writes, what it reads, and the fingerprint of both."""

    run: Run
    name: str  # of the budget the child was chosen for
    inputs: str

    @property
    def healed(self) -> str:
        """The record of the healed child's tensors."""
        return records.child(self.name, "healed")

    @property
    def checkpoint(self) -> str:
        """The record a killed healing resumes from."""
        return records.child(self.name, "heal")


def heal(
    course: Course,
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    tokens: torch.Tensor,
    options: Heal,
) -> Weights:
    """Train every parameter of a copy of the child; returns its tensors by checkpoint name.

    Args:
        tokens: token ids [S, T] of the calibration split.
    """
    if course.run.fresh(course.healed, course.inputs):
        return course.run.load_tensors(course.healed)
    dtype = next(child.parameters()).dtype
    student = copy.deepcopy(child).float().requires_grad_().train()
    size = max(1, options.batch_tokens // tokens.shape[1])
    steps = options.tokens // (size * tokens.shape[1])
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    losses = _resume(course, student, optimizer)
    saved = time.monotonic()
    for step in track(range(len(losses), steps), "heal"):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate(step, steps)
        batch = tokens[_sequences(len(tokens), size, step)]
        losses.append(_step(student, teacher, batch, optimizer, options))
        if time.monotonic() - saved > CHECKPOINT_S:
            _checkpoint(course, student, optimizer, losses)
            saved = time.monotonic()
    student.eval().requires_grad_(False)
    healed = {n: p.detach().to(dtype) for n, p in student.named_parameters()}
    course.run.save_tensors(course.healed, healed, course.inputs, {"losses": losses})
    return healed


def _step(
    student: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    batch: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    options: Heal,
) -> dict[str, float]:
    """One update from a batch [S, T], a few sequences at a time; returns its mean losses."""
    micro = batch.split(max(1, MICRO_TOKENS // batch.shape[1]))
    totals = {"cosine": 0.0, "kl": 0.0}
    autocast = next(teacher.parameters()).dtype == torch.bfloat16
    for part in micro:
        share = len(part) / len(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            parts = losses_of(student, teacher, part)
        weighted = options.cosine * parts["cosine"] + options.kl * parts["kl"]
        (weighted * share).backward()
        for name, value in parts.items():
            totals[name] += float(value.detach()) * share
    torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return totals


def losses_of(
    student: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """`cosine` (summed over layers) and `kl` (natural log), both means over tokens."""
    with torch.no_grad():
        wanted = teacher(tokens, use_cache=False, output_hidden_states=True)
    given = student(tokens, use_cache=False, output_hidden_states=True)
    pairs = zip(given.hidden_states[1:], wanted.hidden_states[1:])
    cosine = [
        1 - F.cosine_similarity(h_c.float(), h_p.float(), dim=-1).mean() for h_c, h_p in pairs
    ]
    p = wanted.logits.float().log_softmax(-1).flatten(0, 1)
    c = given.logits.float().log_softmax(-1).flatten(0, 1)
    kl = F.kl_div(c, p, reduction="batchmean", log_target=True)
    return {"cosine": torch.stack(cosine).sum(), "kl": kl}


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def _sequences(count: int, size: int, step: int) -> torch.Tensor:
    """Which sequences step `step` trains on: epochs of fixed shuffles, a function of the step."""
    first = step * size
    picks = []
    for place in range(first, first + size):
        epoch, index = divmod(place, count)
        picks.append(_shuffle(count, epoch)[index])
    return torch.stack(picks)


def _shuffle(count: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))


def _checkpoint(
    course: Course,
    student: PuzzleForCausalLM,
    optimizer: torch.optim.Optimizer,
    losses: list[dict[str, float]],
) -> None:
    tensors = {}
    for name, parameter in student.named_parameters():
        state = optimizer.state[parameter]
        tensors[name] = parameter.detach()
        tensors[f"{name}:mean"], tensors[f"{name}:square"] = state["exp_avg"], state["exp_avg_sq"]
    course.run.save_tensors(course.checkpoint, tensors, course.inputs, losses)


def _resume(
    course: Course, student: PuzzleForCausalLM, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Take up the last checkpoint, if there is one; returns the losses of the steps it holds."""
    if not course.run.fresh(course.checkpoint, course.inputs):
        return []
    tensors = course.run.load_tensors(course.checkpoint)
    losses: list[dict[str, float]] = course.run.info(course.checkpoint)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(tensors[name])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(len(losses))),
                "exp_avg": tensors[f"{name}:mean"].clone(),
                "exp_avg_sq": tensors[f"{name}:square"].clone(),
            }
    return losses
