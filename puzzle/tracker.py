"""Where the losses of a training are seen while it runs: TensorBoard, or what you call instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from puzzle.ranks import here
from puzzle.training import Progress

Watch = Callable[[Progress], None]  # called after every step


def tensorboard(folder: Path) -> Watch:
    """Write every loss and the learning rate as event files; `tensorboard --logdir` shows them.

    Steps that a killed training had written after its last checkpoint are written over.
    """
    from tensorboardX import SummaryWriter

    writers: list[SummaryWriter] = []

    def watch(progress: Progress) -> None:
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=progress.step))
        for name, value in progress.losses.items():
            writers[0].add_scalar(name, value, progress.step)
        writers[0].flush()

    return watch if here().leads else lambda progress: None
