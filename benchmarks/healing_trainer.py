"""Healing beside a plain `transformers.Trainer` with the same losses, a step of each in turn.

The Trainer's `compute_loss` is the losses as anyone would write them, on whole logits. Model,
teacher, sequences, micro-batches, dtype of the arithmetic, optimizer and threads are the same; a
step of the one is followed by a step of the other. Seconds are CPU time of the one thread, which
other processes lengthen little; the wall clock's stand beside them in the rows.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from puzzle.checkpoints import Checkpoints
from puzzle.config import Heal
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.losses import Factors
from puzzle.objective import Objective, Trunk
from puzzle.run import Run
from puzzle.schedule import batch, schedule
from puzzle.training import BETAS, CLIP, MICRO_TOKENS, Progress, Texts, Training

STEPS = 6
WARMUP = 1  # steps that are not counted
Step = dict[str, float]  # its seconds, of the processor and of the clock, and its loss


def compared(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tokens: torch.Tensor, options: Heal
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The ratio of tokens per second, and every step of both."""
    teacher = copy.deepcopy(teacher)
    for parameter in teacher.parameters():  # not its buffers: rotary angles need float32
        parameter.data = parameter.data.to(_dtype(options))
    batches = [batch(tokens, step) for step in schedule(options, tokens.shape[1])[:STEPS]]
    turns = Turns(_ours(child, teacher, tokens, options))
    _trainer(child, teacher, options, torch.cat(batches), turns).train()
    first = turns.ours[0]["loss"], turns.trainer[0]["loss"]
    assert math.isclose(*first, rel_tol=0.01), f"the losses differ: {first}"
    rows = [
        {"kind": "step", "who": who, "number": number, "tokens": batches[0].numel(), **step}
        for who, steps in (("puzzle", turns.ours), ("trainer", turns.trainer))
        for number, step in enumerate(steps)
    ]
    seconds = {
        who: [step["cpu_s"] for step in steps[WARMUP:]]
        for who, steps in (("puzzle", turns.ours), ("trainer", turns.trainer))
    }
    summary = {
        f"{who}_tokens_per_s": batches[0].numel() / statistics.median(each)
        for who, each in seconds.items()
    }
    pairs = zip(seconds["trainer"], seconds["puzzle"])
    ratio = statistics.median(trainer / ours for trainer, ours in pairs)
    return {**summary, "tokens_per_s_over_trainer": ratio}, rows


def _ours(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tokens: torch.Tensor, options: Heal
) -> Iterator[Progress]:
    """The healing engine, a step at a time; it keeps no checkpoints, as the Trainer keeps none."""
    student = copy.deepcopy(child).float().requires_grad_().train()
    objective = Objective(student, Trunk(teacher), Factors(options.cosine, options.kl))
    never = Checkpoints(Run(tempfile.mkdtemp()), "heal", "", saved=math.inf)
    return Training(objective, Texts(tokens), options, never, _dtype(options)).run()


def _dtype(options: Heal) -> torch.dtype:
    """Of the arithmetic of both."""
    return torch.bfloat16 if options.dtype == "bfloat16" else torch.float32


class Turns(TrainerCallback):  # type: ignore[misc]
    """Times a Trainer's steps, and after each one of ours on the same batch."""

    def __init__(self, steps: Iterator[Progress]) -> None:
        self.steps = steps
        self.ours: list[Step] = []
        self.trainer: list[Step] = []
        self.losses: list[float] = []  # of the Trainer's micro-batches since its last step
        self.begin = _now()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A Trainer's step begins."""
        self.losses, self.begin = [], _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A Trainer's step is done; it is our turn."""
        took = _since(self.begin)
        self.trainer.append({**took, "loss": statistics.mean(self.losses)})
        begin = _now()
        losses = next(self.steps).losses
        took = _since(begin)
        self.ours.append({**took, "loss": losses["cosine"] + losses["kl"]})


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _since(begin: tuple[float, float]) -> Step:
    cpu_s, wall_s = (now - then for now, then in zip(_now(), begin))
    return {"cpu_s": cpu_s, "wall_s": wall_s}


class Distilling(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is cosine over hidden states + KL on whole logits."""

    teacher: PuzzleForCausalLM
    turns: Turns

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> Any:
        """The losses of one micro-batch."""
        asked = {"use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            wanted = self.teacher(**inputs, **asked)
        given = model(**inputs, **asked)
        pairs = zip(given.hidden_states[1:], wanted.hidden_states[1:])
        cosine = sum(1 - F.cosine_similarity(c.float(), p.float(), dim=-1).mean() for c, p in pairs)
        c = given.logits.float().log_softmax(-1).flatten(0, 1)
        p = wanted.logits.float().log_softmax(-1).flatten(0, 1)
        loss = cosine + F.kl_div(c, p, reduction="batchmean", log_target=True)
        self.turns.losses.append(float(loss.detach()))
        return loss


def _trainer(
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    options: Heal,
    tokens: torch.Tensor,
    turns: Turns,
) -> Distilling:
    """As a user sets one up on a CPU, over the same micro-batches."""
    length = tokens.shape[1]
    micro = MICRO_TOKENS // length
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=options.batch_tokens // length // micro,
        max_steps=STEPS,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=_dtype(options) == torch.bfloat16,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Distilling(
        model=copy.deepcopy(child).float().requires_grad_().train(),
        args=arguments,
        train_dataset=[{"input_ids": row} for row in tokens],
        callbacks=[turns],
    )
    trainer.teacher, trainer.turns = teacher, turns
    return trainer
