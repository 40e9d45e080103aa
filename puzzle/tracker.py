"""Where the losses of a training are seen while it runs: TensorBoard, and what you call beside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from puzzle.ranks import here
from puzzle.training import Progress

Watch = Callable[[Progress], None]  # called after every step
FLUSH_S = 10


@contextlib.contextmanager
def tensorboard(folder: Path, beside: Watch | None = None) -> Iterator[Watch]:
    """Write every loss and the learning rate as event files; `tensorboard --logdir` shows them.

    Steps that a killed training had written after its last checkpoint are written over. The
    leading rank also calls `beside`, where it is given.
    """
    from tensorboardX import SummaryWriter

    writers: list[SummaryWriter] = []  # none until a step is done, and on other ranks

    def watch(progress: Progress) -> None:
        if not writers:
            step = progress.step
            writers.append(SummaryWriter(str(folder), purge_step=step, flush_secs=FLUSH_S))
        for name, value in progress.losses.items():
            writers[0].add_scalar(name, value, progress.step)
        if beside:
            beside(progress)

    try:
        yield watch if here().leads else lambda progress: None
    finally:
        for writer in writers:
            writer.close()
