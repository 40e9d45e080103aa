"""How long functions take, as CUDA graphs over rotating inputs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from kernels_torch import Function, normal

from puzzle.hardware.graphs import Replay, captured, warm_s

ROTATED_BYTES = 256 * 2**20  # several times the L2 cache of an H100 (50 MiB)
SAMPLES = 25


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median of samples, and (p90 - p10) / median."""

    median_s: float
    spread: float


def summarize(samples_s: list[float]) -> Timing:
    """Median and spread of samples."""
    tenths = statistics.quantiles(samples_s, n=10, method="inclusive")
    median = statistics.median(samples_s)
    return Timing(median, (tenths[-1] - tenths[0]) / median)


def measure(functions: dict[str, Function], make: Function) -> dict[str, Timing]:
    """Time functions alternately, each as a CUDA graph over the same rotating inputs."""
    copies = _rotating(make)
    graphs = {name: _graph(function, copies) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(SAMPLES):
        for name, graph in graphs.items():
            samples[name].append(graph.sample_s())
    return {name: summarize(found) for name, found in samples.items()}


def _rotating(make: Function) -> list[tuple[torch.Tensor, ...]]:
    """Fresh inputs, as many as it takes to leave nothing of the first in the cache."""
    first = make()
    size = sum(tensor.numel() * tensor.element_size() for tensor in first)
    count = max(2, min(64, -(-ROTATED_BYTES // size)))
    return [first, *(make() for _ in range(count - 1))]


def _graph(function: Function, copies: list[tuple[torch.Tensor, ...]]) -> Replay:
    """One pass over the copies."""
    passes = [partial(function, *inputs) for inputs in copies]
    warm_s(passes[0])
    return captured(passes)


def copy_bytes_s() -> float:
    """Bytes a second, read and written, of a copy far larger than the cache."""
    size = 2**30
    timing = measure({"copy": torch.clone}, lambda: (normal(size // 2),))["copy"]
    return 2 * size / timing.median_s
