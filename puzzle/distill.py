"""The block library: every variant of every layer, started from the parent and distilled alone.

Decoupled blockwise local distillation (Puzzle, arXiv 2411.19146, section 3): an attention variant
is trained with the parent's FFN frozen behind it, an FFN variant with the parent's attention
frozen before it, and halves are composed afterwards: m + n trainings a layer instead of m n.

Each half starts from the parent's weights (sliced, pooled or multiplied), has its last matrix
refit in closed form, keeps the better of the two on held-out tokens, and is trained from there;
the training is kept only where it lowered the held-out loss. No variant ends worse than it began.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.config import Distill
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.lesson import Lesson, Streams
from puzzle.modules import Weights, build_layer
from puzzle.parent import Parent
from puzzle.progress import track
from puzzle.run import Run, fingerprint

WARMUP = 0.05  # of the steps


def distill(
    run: Run, parent: Parent, halves: Sequence[Sequence[Block]], options: Distill, traced: str
) -> str:
    """Write every missing half of every layer; returns the fingerprint of the whole library.

    Args:
        halves: per layer, the variants to make, each a block whose other half is a no-op.
        traced: fingerprint of the trace they are made from.
    """
    inputs = fingerprint("library", traced, options.model_dump())
    for layer in track(range(parent.shape.layers), "library"):
        missing = [h for h in halves[layer] if not run.fresh(records.half(layer, h), inputs)]
        if missing:
            lesson = Lesson.read(run, parent, layer)
            pupils = train(lesson, [begin(lesson, half) for half in missing], options)
            for pupil in pupils:
                name = records.half(layer, pupil.half)
                run.save_tensors(name, pupil.weights, inputs, pupil.losses)
    return inputs


@dataclass(frozen=True)
class Pupil:
    """One half on its way: its weights, and its held-out loss after each way of making it."""

    half: Block
    weights: Weights
    losses: dict[str, float]


def begin(lesson: Lesson, half: Block) -> Pupil:
    """A half as it starts: sliced from the parent or refit, whichever is better held out."""
    sliced = lesson.sliced(half)
    refit = lesson.refit(half, sliced)
    losses = {
        "sliced": lesson.held_out_loss(half, sliced),
        "refit": lesson.held_out_loss(half, refit),
    }
    return Pupil(half, refit if losses["refit"] < losses["sliced"] else sliced, losses)


def train(lesson: Lesson, pupils: Sequence[Pupil], options: Distill) -> list[Pupil]:
    """Train all halves of one layer on the same batches; each ends no worse than it began."""
    modules = [_trainable(lesson, pupil) for pupil in pupils]
    parameters = [p for module in modules for p in module.parameters()]
    steps = options.tokens // options.batch_tokens
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    half_precision = lesson.parent.dtype == torch.bfloat16
    for streams in _batches(lesson.fit, steps, options.batch_tokens):
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
            total = torch.stack([lesson.loss(module, streams) for module in modules]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return [_better(lesson, pupil, module) for pupil, module in zip(pupils, modules)]


def _trainable(lesson: Lesson, pupil: Pupil) -> PuzzleLayer:
    """The half as a module with float32 masters of its own."""
    weights = {name: weight.float().clone() for name, weight in pupil.weights.items()}
    module = build_layer(lesson.parent.config, pupil.half, weights)
    return module.requires_grad_()


def _better(lesson: Lesson, pupil: Pupil, module: PuzzleLayer) -> Pupil:
    dtype = lesson.parent.dtype
    trained = {name: weight.detach().to(dtype) for name, weight in module.state_dict().items()}
    losses = pupil.losses | {"trained": lesson.held_out_loss(pupil.half, trained)}
    improved = losses["trained"] < min(pupil.losses.values())
    return replace(pupil, weights=trained if improved else pupil.weights, losses=losses)


def _batches(fit: Streams, steps: int, batch_tokens: int) -> Iterator[Streams]:
    """`steps` batches of whole sequences, reshuffled with a fixed seed at every epoch."""
    count, length = fit.weight.shape
    size = min(count, max(1, batch_tokens // length))
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield fit[order[:size]]
        order = order[size:]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
