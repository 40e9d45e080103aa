"""Where the losses of a training are seen while it runs: TensorBoard, or what you call instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from puzzle.ranks import here
from puzzle.training import Progress

Watch = Callable[[Progress], None]  # called after every step
FLUSH_S = 10


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Watch]:
    """Write every loss and the learning rate as event files; `tensorboard --logdir` shows them.

    Steps that a killed training had written after its last checkpoint are written over.
    """
    from tensorboardX import SummaryWriter

    writers: list[SummaryWriter] = []  # none until a step is done, and on other ranks

    def watch(progress: Progress) -> None:
        if not writers:
            step = progress.step
            writers.append(SummaryWriter(str(folder), purge_step=step, flush_secs=FLUSH_S))
        for name, value in progress.losses.items():
            writers[0].add_scalar(name, value, progress.step)

    try:
        yield watch if here().leads else lambda progress: None
    finally:
        for writer in writers:
            writer.close()
