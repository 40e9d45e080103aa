"""Where seconds come from: one interface for the roofline, public tables and measured tables.

A source is opened for one shape, workload and number of GPUs. Asked for a half layer, or for what
lies outside the layers, in one forward pass, it answers with seconds and says where they are from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from puzzle.blocks.variant import Block, NoOp
from puzzle.budget import Workload
from puzzle.hardware.cost import Cost
from puzzle.hardware.devices import BYTES, bytes_per_weight
from puzzle.hardware.roofline import kv_bytes_per_sequence, outside_dtype, sum_of_contexts
from puzzle.shape import Shape

EXTRAPOLATED = "beyond "  # begins the name of a source that was asked past what it measured


@dataclass(frozen=True)
class Timed:
    """Seconds, and the names of the sources they come from."""

    seconds: float = 0.0
    sources: frozenset[str] = frozenset()

    def __add__(self, other: Timed) -> Timed:
        return Timed(self.seconds + other.seconds, self.sources | other.sources)

    def __mul__(self, times: float) -> Timed:
        return Timed(self.seconds * times, self.sources)


@dataclass(frozen=True)
class Step:
    """One forward pass: `sequences` get their next token while `prompts` are read beside them.

    Counts may be fractions, as means over many passes are.
    """

    sequences: float
    prompts: float
    prompt_tokens: int
    new_tokens: int

    @property
    def rows(self) -> float:
        """Tokens that go through the GEMMs."""
        return self.sequences + self.prompts * self.prompt_tokens

    @property
    def outputs(self) -> float:
        """Tokens that the head sees: the last of each prompt, and every new one."""
        return self.sequences + self.prompts

    def context(self, window: int | None = None) -> float:
        """Positions that a new token sees, the mean over a request's new tokens."""
        return sum_of_contexts(self.prompt_tokens, self.new_tokens, window) / self.new_tokens

    def pairs(self, window: int | None = None) -> int:
        """Query-key pairs in one prompt."""
        return sum_of_contexts(0, self.prompt_tokens, window)


class Source(Protocol):
    """Seconds of the parts of a model, opened for one shape, workload and number of GPUs."""

    @property
    def shape(self) -> Shape:
        """The parent's."""

    @property
    def workload(self) -> Workload:
        """What is served."""

    @property
    def gpus(self) -> int:
        """Over how many GPUs every layer is split."""

    def half(self, half: Block, step: Step) -> Timed:
        """One layer's attention or FFN in one pass; `half` is a block whose other half is noop."""

    def outside(self, step: Step) -> Timed:
        """Embedding, final norm, head and choosing the tokens, in one pass."""


def halves(block: Block) -> list[Block]:
    """The halves of a block that do anything."""
    parts = [Block(block.attention, NoOp()), Block(NoOp(), block.ffn)]
    return [part for part in parts if part != Block(NoOp(), NoOp())]


def block_timed(source: Source, block: Block, step: Step) -> Timed:
    """One layer that holds `block`, in one pass."""
    return sum((source.half(part, step) for part in halves(block)), Timed())


def block_cost(source: Source, block: Block, batch: int) -> tuple[Cost, frozenset[str]]:
    """A block's cost in static batches, and where its seconds come from.

    On several GPUs `batch` is requests per GPU and bytes are one GPU's, so that throughput per GPU
    and the memory of a GPU are read off as on one; seconds are of all of them together.
    """
    shape, workload = source.shape, source.workload
    prefill, decode = (block_timed(source, block, step) for step in passes(source, batch))
    decode *= workload.new_tokens
    params = shape.block_params(block)
    weight_bytes = math.ceil(params * bytes_per_weight(workload.weights) / source.gpus)
    kv_bytes = batch * kv_bytes_per_request(shape, block, workload, source.gpus)
    cost = Cost(params, weight_bytes, kv_bytes, prefill.seconds, decode.seconds)
    return cost, (prefill + decode).sources


def outside_cost(source: Source, batch: int) -> tuple[Cost, frozenset[str]]:
    """The cost of what lies outside the layers, as `block_cost`'s, and its sources."""
    prefill, decode = map(source.outside, passes(source, batch))
    decode *= source.workload.new_tokens
    weight_bytes = math.ceil(outside_bytes(source.shape, source.workload) / source.gpus)
    params = source.shape.outside_params()
    cost = Cost(params, weight_bytes, 0, prefill.seconds, decode.seconds)
    return cost, (prefill + decode).sources


def passes(source: Source, batch: int) -> tuple[Step, Step]:
    """The two passes of a static batch: all prompts at once, and the mean decode step."""
    requests = batch * source.gpus
    lengths = (source.workload.prompt_tokens, source.workload.new_tokens)
    return Step(0, requests, *lengths), Step(requests, 0, *lengths)


def kv_bytes_per_request(shape: Shape, block: Block, workload: Workload, gpus: int) -> int:
    """Cache of one finished request in one layer over all GPUs; each holds one KV head at least."""
    held = kv_bytes_per_sequence(shape, block.attention, workload)
    heads = block.attention.cached_heads
    return held * max(heads, gpus) // heads if heads else held


def outside_bytes(shape: Shape, workload: Workload) -> int:
    """Weights outside the layers, which engines keep in the activations' type."""
    return shape.outside_params() * BYTES[outside_dtype(workload)]
