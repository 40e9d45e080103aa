"""Passes on a GPU as serving engines run them: captured as CUDA graphs, and replayed.

Between the kernels of a graph there are no launches to wait for, so that what is timed is theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

SAMPLE_S = 5e-3
Run = Callable[[], object]


@dataclass(frozen=True)
class Replay:
    """Passes one after another, as often as makes a sample."""

    run: Run  # all of them once
    passes: int
    times: int

    def sample_s(self) -> float:
        """Seconds of one pass, the mean over a sample."""
        return elapsed_s(self.run, self.times) / self.passes


def elapsed_s(run: Run, times: int = 1) -> float:
    """Seconds of one run between events, the mean over so many."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / times


def warm_s(run: Run) -> float:
    """Seconds of a pass launched for the second time; the first compiles and allocates.

    It runs on the stream that captures: torch asks for this before a pass is captured.
    """
    stream = _side()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        seconds = elapsed_s(run)
    torch.cuda.current_stream().wait_stream(stream)
    return seconds


def captured(passes: Sequence[Run]) -> Replay:
    """Passes, warm already, as one graph.

    Raises:
        RuntimeError: a pass waits for the device, copies from the host, or finds no memory.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_side()):
        for run in passes:
            run()
    return _replay(graph.replay, len(passes))


def captured_or_launched(passes: Sequence[Run]) -> Replay:
    """Passes as one graph; where that cannot be, launched one by one, with a warning."""
    stream = torch.cuda.current_stream()
    try:
        return captured(passes)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
    # a capture that fails may leave its stream, and a generator that waits for its end
    torch.cuda.set_stream(stream)
    for generator in torch.cuda.default_generators:
        generator.graphsafe_set_state(generator.clone_state())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    warnings.warn(f"timed with the gaps between launches: no CUDA graph ({reason})", stacklevel=2)

    def run() -> None:
        for each in passes:
            each()

    return _replay(run, len(passes))


def _replay(run: Run, passes: int) -> Replay:
    run()
    return Replay(run, passes, max(1, round(SAMPLE_S / elapsed_s(run))))


@cache
def _side() -> torch.cuda.Stream:
    return torch.cuda.Stream()
