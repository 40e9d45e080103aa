"""Whole models under continuous batching: throughput, latency and the batch they are reached at.

Requests of one length are always waiting. The engine keeps B of them in flight: as many as the
cache holds, as it takes at once, and as its token budget T can feed,

    B = min(cache / bytes of a request, max batch, T / (1 + prompt / new)).

Whole prompts enter, n at a time, beside the B that get a token: n = (T - B) / prompt of them, or
one. A request lives N = `new_tokens` steps, in which the B places are filled once, so s = B / n
steps read prompts and N - s only decode: B N tokens take s step(B, n) + (N - s) step(B, 0).
Those two kinds of steps cost differently from their mean: a long prompt is bound by arithmetic,
decoding by memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import Device, bytes_per_weight
from puzzle.hardware.source import (
    Source,
    Step,
    Timed,
    block_timed,
    kv_bytes_per_request,
    outside_bytes,
)
from puzzle.units import show


@dataclass(frozen=True)
class Engine:
    """How an engine is set up; the defaults are TensorRT-LLM's in NVIDIA's throughput runs."""

    max_batch: int = 2048
    max_tokens: int = 8192  # that one pass may process
    cache_share: float = 0.95  # of the memory that weights and reserve leave free
    reserve_bytes: int = 2 * 10**9  # on each GPU, for buffers and the driver's own


@dataclass(frozen=True)
class Served:
    """What serving a model comes to at one batch."""

    batch: float  # requests in flight
    bound: str  # what keeps it from being larger
    tokens_per_s: float  # generated tokens per second per GPU
    ttft_s: float  # of a pass that reads prompts, as many as enter together; no waiting for it
    tpot_s: float
    gpus: int
    params: int
    weight_bytes: int  # over all GPUs
    kv_bytes: int  # of the requests in flight, over all GPUs
    sources: frozenset[str]


@dataclass(frozen=True)
class Model:
    """A model of these blocks on a device, its seconds from `source`."""

    source: Source
    blocks: Counter[Block]
    device: Device
    engine: Engine = Engine()

    @classmethod
    def of(
        cls, source: Source, blocks: Iterable[Block], device: Device, engine: Engine = Engine()
    ) -> Model:
        """PuzzleError where requests are longer than the parent's positions."""
        source.workload.check_positions(source.shape.max_positions)
        return cls(source, Counter(blocks), device, engine)

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return self.source.shape.model_params(tuple(self.blocks.elements()))

    @property
    def weight_bytes(self) -> int:
        """Weights over all GPUs."""
        shape, workload = self.source.shape, self.source.workload
        inside = self.params - shape.outside_params()
        return int(inside * bytes_per_weight(workload.weights)) + outside_bytes(shape, workload)

    @property
    def request_bytes(self) -> int:
        """Cache of one finished request over all GPUs."""
        shape, workload, gpus = self.source.shape, self.source.workload, self.source.gpus
        return sum(
            layers * kv_bytes_per_request(shape, block, workload, gpus)
            for block, layers in self.blocks.items()
        )

    @property
    def cache_bytes(self) -> float:
        """Room for the cache over all GPUs; negative where the weights alone do not fit."""
        each = self.device.memory_gib * 2**30 - self.engine.reserve_bytes
        return self.engine.cache_share * (each * self.source.gpus - self.weight_bytes)

    def step(self, sequences: float, prompts: float) -> Timed:
        """One pass over the whole model."""
        workload = self.source.workload
        step = Step(sequences, prompts, workload.prompt_tokens, workload.new_tokens)
        each = (block_timed(self.source, block, step) * n for block, n in self.blocks.items())
        return sum(each, self.source.outside(step))

    def largest_batch(self) -> tuple[float, str]:
        """Requests in flight when more always wait, and what keeps them from being more.

        Raises:
            PuzzleError: not even one request fits beside the weights.
        """
        workload = self.source.workload
        bounds = {
            "memory": self.cache_bytes / max(1, self.request_bytes),
            "max batch": float(self.engine.max_batch),
            "tokens a pass": self.engine.max_tokens
            / (1 + workload.prompt_tokens / workload.new_tokens),
        }
        if bounds["memory"] < 1:
            need = self.weight_bytes + self.request_bytes / self.engine.cache_share
            raise PuzzleError(
                f"the model needs {show(need, 'B')} for its weights and one request, "
                f"{self.source.gpus} GPUs leave {show(self._room, 'B')}; take more GPUs, smaller "
                "weights, or shorter requests"
            )
        bound = min(bounds, key=lambda name: bounds[name])
        return max(1.0, bounds[bound]), bound

    def at(self, batch: float, bound: str = "asked") -> Served:
        """Serve with `batch` requests in flight."""
        workload, gpus = self.source.workload, self.source.gpus
        prompt, new = workload.prompt_tokens, workload.new_tokens
        fed = max(1.0, (self.engine.max_tokens - batch) / prompt)
        together = max(min(batch, fed), batch / new)
        reading_steps = batch / together
        reading = self.step(batch, together)
        lifetime = reading * reading_steps
        if new > reading_steps:
            lifetime += self.step(batch, 0) * (new - reading_steps)
        return Served(
            batch=batch,
            bound=bound,
            tokens_per_s=batch * new / lifetime.seconds / gpus,
            ttft_s=reading.seconds,
            tpot_s=lifetime.seconds / new,
            gpus=gpus,
            params=self.params,
            weight_bytes=self.weight_bytes,
            kv_bytes=int(batch * self.request_bytes),
            sources=lifetime.sources,
        )

    def saturated(self) -> Served:
        """Serve as many requests as fit."""
        return self.at(*self.largest_batch())

    def best(self, tpot_s: float | None = None, ttft_s: float | None = None) -> Served | None:
        """The batch of highest throughput within latency limits; None when none keeps them."""
        largest, bound = self.largest_batch()
        tried = [self.at(batch) for batch in _powers(largest)] + [self.at(largest, bound)]
        kept = [
            served
            for served in tried
            if served.tpot_s <= (tpot_s or served.tpot_s)
            and served.ttft_s <= (ttft_s or served.ttft_s)
        ]
        return max(kept, key=lambda served: served.tokens_per_s, default=None)

    @property
    def _room(self) -> float:
        return (self.device.memory_gib * 2**30 - self.engine.reserve_bytes) * self.source.gpus


def _powers(largest: float) -> Sequence[float]:
    return [float(2**power) for power in range(int(largest).bit_length()) if 2**power < largest]
