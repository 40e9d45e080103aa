"""Healing: the whole child is trained, by global knowledge distillation or on plain text.

`L = cosine sum_layers mean_tokens (1 - cos(h_c, h_p)) + kl mean_tokens KL(p || c)`, no language
modeling loss unless asked (Puzzle, arXiv 2411.19146, section 5: the best of its ablation). The
parent may first learn the text itself, and then teaches it better (Minitron, 2408.11796).

Legend: S sequences, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from puzzle.checkpoints import Checkpoints
from puzzle.config import Heal
from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.losses import Factors
from puzzle.modules import Weights
from puzzle.objective import Objective, Trunk
from puzzle.ranks import here
from puzzle.run import Run
from puzzle.shards import full, shard
from puzzle.training import Progress, Texts, Training

CORRECTION = 0.2  # of the learning rate, for a parent that learns the text before it teaches


@dataclass(frozen=True)
class Course:
    """Where a training writes, and the fingerprint of all it reads."""

    run: Run
    record: str  # of the trained tensors
    inputs: str

    @property
    def done(self) -> bool:
        """Whether the training has been done."""
        return self.run.fresh(self.record, self.inputs)

    @property
    def checkpoints(self) -> Checkpoints:
        """What a killed training goes on from."""
        return Checkpoints(self.run, f"{self.record}.part", self.inputs)

    def before(self, name: str) -> Course:
        """A training beside this one whose result it needs."""
        folder = self.record.rpartition("/")[0]
        return Course(self.run, f"{folder}/{name}", self.inputs)


def heal(
    course: Course,
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM | None,
    texts: Texts,
    options: Heal,
    *,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Weights:
    """Train every parameter of a copy of the child; returns its tensors by checkpoint name.

    Masters and moments are kept in fp32, the arithmetic is `options.dtype`, else the child's, and
    the tensors returned are in the child's. Every rank calls this, and holds its rows meanwhile.

    Args:
        teacher: may be None where only the text is learned (`lm`).
        watch: called after every step, for a tracker or an evaluation in passing.

    Raises:
        PuzzleError: losses that need what is not there.
    """
    if course.done:
        return course.run.load_tensors(course.record)
    if options.checks and texts.validation_ST is None:
        raise PuzzleError("heal.checks needs a validation text; set heal.checks=0")
    factors, kept = Factors(options.cosine, options.kl, options.lm), _dtype(child)
    dtype = getattr(torch, options.dtype) if options.dtype else kept
    if teacher is not None and factors.guided and options.correct_tokens:
        teacher = corrected(course.before("corrected"), teacher, texts, options)
    student = copy.deepcopy(child).float().requires_grad_().train()
    if options.recompute:
        student.activation_checkpointing_enable({"use_reentrant": False})
    guide = _guide(teacher, dtype) if teacher is not None and factors.guided else None
    objective = Objective(student, guide, factors, options.layers)
    shard(objective, student.model.layers, dtype)
    training = Training(objective, texts, options, course.checkpoints, dtype)
    for progress in training.run():
        watch(progress)
    healed = {name: full(p.detach()).to(kept) for name, p in student.named_parameters()}
    if here().leads:
        course.run.save_tensors(course.record, healed, course.inputs, {"losses": training.losses})
        training.checkpoints.clear()
    return healed


def corrected(
    course: Course, teacher: PuzzleForCausalLM, texts: Texts, options: Heal
) -> PuzzleForCausalLM:
    """A copy of the teacher that has learned `options.correct_tokens` of the text, gently.

    The teacher it was is what the child is still compared with in the end.
    """
    changes = {
        "tokens": options.correct_tokens,
        "learning_rate": options.learning_rate * CORRECTION,
        "cosine": 0.0,
        "kl": 0.0,
        "lm": 1.0,
        "checks": 0,
    }
    weights = heal(course, teacher, None, texts, options.model_copy(update=changes))
    learned = copy.deepcopy(teacher)
    learned.load_state_dict(weights, strict=False)  # a tied head is no tensor of its own
    return learned


def _guide(teacher: PuzzleForCausalLM, dtype: torch.dtype) -> Trunk:
    """The teacher in the dtype of the arithmetic; where ranks share it, a copy that they do."""
    if here().world > 1 or _dtype(teacher) != dtype:
        teacher = copy.deepcopy(teacher)
        for parameter in teacher.parameters():  # not its buffers: rotary angles need float32
            parameter.data = parameter.data.to(dtype)
    guide = Trunk(teacher)
    shard(guide, teacher.model.layers, dtype)
    return guide


def _dtype(model: PuzzleForCausalLM) -> torch.dtype:
    return next(model.parameters()).dtype
