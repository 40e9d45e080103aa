"""Healing: the whole child is trained, by global knowledge distillation or on plain text.

`L = cosine sum_layers mean_tokens (1 - cos(h_c, h_p)) + kl mean_tokens KL(p || c)`, no language
modeling loss unless asked (Puzzle, arXiv 2411.19146, section 5: the best of its ablation).

Legend: S sequences, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from puzzle import records
from puzzle.checkpoints import Checkpoints
from puzzle.config import Heal
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.losses import Factors
from puzzle.modules import Weights
from puzzle.objective import Objective
from puzzle.ranks import here
from puzzle.run import Run
from puzzle.shards import full, shard
from puzzle.training import Progress, Training

Watch = Callable[[Progress], None]


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
    def checkpoints(self) -> Checkpoints:
        """What a killed healing goes on from."""
        return Checkpoints(self.run, records.child(self.name, "heal"), self.inputs)


def heal(
    course: Course,
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM | None,
    tokens: torch.Tensor,
    options: Heal,
    *,
    watch: Watch = lambda progress: None,
) -> Weights:
    """Train every parameter of a copy of the child; returns its tensors by checkpoint name.

    Masters and moments are kept in fp32; the arithmetic is `options.dtype`, else the child's.

    Args:
        teacher: may be None where only the text is learned (`lm`).
        tokens: token ids [S, T] of the calibration split.
        watch: called after every step, for a tracker or an evaluation in passing.
    """
    if course.run.fresh(course.healed, course.inputs):
        return course.run.load_tensors(course.healed)
    kept = next(child.parameters()).dtype
    dtype = getattr(torch, options.dtype) if options.dtype else kept
    student = copy.deepcopy(child).float().requires_grad_().train()
    if options.recompute:
        student.gradient_checkpointing_enable()
    factors = Factors(options.cosine, options.kl, options.lm)
    objective = Objective(student, teacher, factors, options.layers)
    shard(objective, student.model.layers)
    training = Training(objective, tokens, options, course.checkpoints, dtype)
    for progress in training.run():
        watch(progress)
    healed = {n: full(p.detach()).to(kept) for n, p in student.named_parameters()}
    if here().leads:
        log = {"losses": training.losses}
        course.run.save_tensors(course.healed, healed, course.inputs, log)
        training.checkpoints.clear()
    return healed
