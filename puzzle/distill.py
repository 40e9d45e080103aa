"""The block library: every variant of every layer, started from the parent and distilled alone.

Decoupled blockwise local distillation (Puzzle, arXiv 2411.19146, section 3): an attention variant
is trained with the parent's FFN frozen behind it, an FFN variant with the parent's attention
frozen before it, and halves are composed afterwards: m + n trainings a layer instead of m n.
Coupled, for a space narrowed by a first search, composed blocks are trained whole from there.

Each half starts from the parent's weights (sliced, pooled or multiplied, by every measure of what
is important), has its last matrix refit in closed form, and is trained from the best of these.
Better is judged by the Fisher score on the scoring split, also while training: a variant stops
where it no longer improves, and none ends worse than it began. All variants of a layer learn from
the same batches of the same streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from puzzle import ranks, records
from puzzle.blocks.variant import Block
from puzzle.config import Distill
from puzzle.lesson import Lesson, Streams
from puzzle.library import Library, is_half
from puzzle.modules import Weights
from puzzle.parent import Parent
from puzzle.progress import track
from puzzle.run import Run, fingerprint
from puzzle.study import Study, batches
from puzzle.window import Window

CHECKS = 4  # of the score while a window teaches
PATIENCE = 2  # checks in a row without a new best, after which a piece is left as it was best
STATE_BYTES = 24  # of a parameter in training: itself, its gradient, two moments, start and best


def distill(
    run: Run,
    parent: Parent,
    pieces: Sequence[Sequence[Block]],
    options: Distill,
    window: Window,
) -> str:
    """Write every missing piece of this rank's layers; returns the fingerprint of the library.

    Args:
        pieces: per layer, the variants to make: each a block whose other half is a no-op, or,
            after its halves, a composed block to train whole.
        window: the traced part of the calibration text to learn from.
    """
    prints = _prints(window, options)
    library = Library(run, parent)
    for layer in track(ranks.here().mine(parent.shape.layers), "library"):
        missing = _behind(run, layer, pieces[layer], prints[window.index :])
        if missing:
            lesson = Lesson.read(run, parent, layer, window)
            for group in _groups(parent, missing, window.room_bytes):
                pupils = [_enter(lesson, library, layer, piece, window) for piece in group]
                steps = window.share(options.steps(lesson.length))
                for pupil in train(lesson, pupils, options, steps):
                    name = records.piece(layer, pupil.piece)
                    run.save_tensors(name, pupil.weights, prints[window.index], pupil.losses)
    return prints[-1]


def behind(run: Run, pieces: Sequence[Sequence[Block]], options: Distill, window: Window) -> bool:
    """Whether any piece of any layer has yet to learn from this window."""
    done = _prints(window, options)[window.index :]
    return any(_behind(run, layer, wanted, done) for layer, wanted in enumerate(pieces))


def _prints(window: Window, options: Distill) -> list[str]:
    """The fingerprint of a piece after each window."""
    inputs = window.inputs, options.model_dump(exclude_none=True)
    return [fingerprint("library", *inputs, index) for index in range(window.count)]


def _behind(run: Run, layer: int, pieces: Sequence[Block], done: Sequence[str]) -> list[Block]:
    return [piece for piece in pieces if not run.fresh(records.piece(layer, piece), *done)]


def _groups(parent: Parent, pieces: Sequence[Block], room_bytes: float) -> list[list[Block]]:
    """Pieces that train at the same time: halves before composed blocks, as many as there is room.

    What a piece becomes does not depend on its company.
    """
    groups: list[list[Block]] = []
    taken, kind = math.inf, None
    for piece in pieces:
        size = STATE_BYTES * parent.shape.block_params(piece)
        whole = not is_half(piece)
        if taken + size > room_bytes or whole != kind:
            groups.append([])
            taken, kind = 0.0, whole
        groups[-1].append(piece)
        taken += size
    return groups


@dataclass(frozen=True)
class Pupil:
    """A piece on its way: its weights, and its score after each way of making it."""

    piece: Block
    weights: Weights
    losses: dict[str, float]


def _enter(lesson: Lesson, library: Library, layer: int, piece: Block, window: Window) -> Pupil:
    """A piece as it comes to a window: new to the first, from its record to the others."""
    if window.index:
        name = records.piece(layer, piece)
        return Pupil(piece, library.run.load_tensors(name), library.run.info(name))
    if is_half(piece):
        return begin(lesson, piece)
    weights = library.weights(layer, piece)
    return Pupil(piece, weights, {"composed": lesson.kl(lesson.built(piece, weights))})


def begin(lesson: Lesson, half: Block) -> Pupil:
    """A half as it starts: the best of its starts, each as it is and refit, by their scores."""
    made = lesson.starts(half)
    refits = {way: lesson.refit(half, weights, way) for way, weights in made.items()}
    losses, refit_losses = (
        {way: lesson.kl(lesson.built(half, weights)) for way, weights in each.items()}
        for each in (made, refits)
    )
    way = min(refit_losses, key=lambda name: refit_losses[name])
    losses["refit"] = refit_losses[way]
    made["refit"] = refits[way]
    return Pupil(half, made[min(losses, key=lambda name: losses[name])], losses)


def train(lesson: Lesson, pupils: Sequence[Pupil], options: Distill, steps: range) -> list[Pupil]:
    """Train all pieces of one layer on the same batches; each ends no worse than it began.

    Args:
        steps: which of all steps these are; the learning rate follows their number.
    """
    training = [_Training(lesson, pupil, options) for pupil in pupils]
    every = max(1, len(steps) // CHECKS)
    for step, which in zip(steps, batches(len(lesson.teach.weight), options.batch(lesson.length))):
        streams = lesson.teach[which]
        for each in training:
            if not each.over:
                each.learn(streams, step)
                if (step - steps.start + 1) % every == 0 or step == steps[-1]:
                    each.check()
    return [each.pupil for each in training]


class _Training:
    """One pupil at its study, and the best it has been."""

    def __init__(self, lesson: Lesson, pupil: Pupil, options: Distill) -> None:
        self.lesson, self.pupil, self.kind = lesson, pupil, options.loss
        built = partial(lesson.built, pupil.piece)
        steps = options.steps(lesson.length)
        self.study = Study(built, pupil.weights, options, lesson.parent.dtype, steps)
        self.idle_checks = 0

    @property
    def over(self) -> bool:
        """Whether it has stopped improving."""
        return self.idle_checks >= PATIENCE

    def learn(self, streams: Streams, step: int) -> None:
        """One step on a batch."""
        self.study.learn(lambda module: self.lesson.loss(module, streams, self.kind), step)

    def check(self) -> None:
        """Keep the weights if they score better than any before."""
        weights = self.study.weights(self.lesson.parent.dtype)
        kl = self.lesson.kl(self.lesson.built(self.pupil.piece, weights))
        before = self.pupil
        losses = before.losses | {"trained": min(kl, before.losses.get("trained", kl))}
        better = kl < min(before.losses.values())
        self.pupil = Pupil(before.piece, weights if better else before.weights, losses)
        self.idle_checks = 0 if better else self.idle_checks + 1
