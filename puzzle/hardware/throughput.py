"""Whole models: throughput, latency and memory from the cost of all their parts.

Requests are served in static batches. All prompts of a batch are read together, so every request
waits for the batch's whole prefill (time to first token), then gets a token a step (time per
output token). Nothing is added for what an engine does between steps on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from puzzle.budget import Budget, Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.cost import Cost
from puzzle.hardware.modeled import source_of
from puzzle.hardware.roofline import model_cost
from puzzle.hardware.source import Source, block_cost, outside_cost
from puzzle.shape import Shape
from puzzle.units import show


@dataclass(frozen=True)
class Prediction:
    """What serving a model comes to, at the batch it is served with."""

    batch: int
    tokens_per_s: float  # generated tokens per second per GPU
    ttft_s: float
    tpot_s: float
    memory_bytes: int
    weight_bytes: int
    kv_bytes: int
    params: int
    prefill_s: float
    decode_s: float
    gpus: int = 1


def predict(cost: Cost, workload: Workload, batch: int) -> Prediction:
    """Serve a model that costs `cost` at this batch.

    tokens_per_s = B N / (prefill_s + decode_s), ttft_s = prefill_s, tpot_s = decode_s / N.
    """
    return Prediction(
        batch=batch,
        tokens_per_s=batch * workload.new_tokens / cost.total_s,
        ttft_s=cost.prefill_s,
        tpot_s=cost.decode_s / workload.new_tokens,
        memory_bytes=cost.memory_bytes,
        weight_bytes=cost.weight_bytes,
        kv_bytes=cost.kv_bytes,
        params=cost.params,
        prefill_s=cost.prefill_s,
        decode_s=cost.decode_s,
    )


def best(
    costs_by_batch: Mapping[int, Cost], workload: Workload, memory_bytes: float
) -> Prediction | None:
    """The batch of highest throughput among those that fit in memory; None when none fits."""
    fitting = [
        predict(cost, workload, batch)
        for batch, cost in costs_by_batch.items()
        if cost.memory_bytes <= memory_bytes
    ]
    return max(fitting, key=lambda prediction: prediction.tokens_per_s, default=None)


MOST_GPUS = 1024


def reference(
    costs_by_batch: Mapping[int, Cost], workload: Workload, memory_bytes: float
) -> Prediction:
    """What the child is compared with: the parent, on the fewest GPUs (1, 2, 4, ...) that hold it.

    Several GPUs are taken to divide memory and time perfectly, which flatters the parent; still
    more GPUs could hold larger batches, which is not tried. Latencies are those of all together.
    """
    gpus = 1
    while gpus <= MOST_GPUS:
        if found := best(costs_by_batch, workload, gpus * memory_bytes):
            return replace(found, gpus=gpus, ttft_s=found.ttft_s / gpus, tpot_s=found.tpot_s / gpus)
        gpus *= 2
    smallest = min(cost.memory_bytes for cost in costs_by_batch.values())
    raise PuzzleError(
        f"the parent needs {show(smallest, 'B')} at the smallest batch, {MOST_GPUS} GPUs hold "
        f"{show(MOST_GPUS * memory_bytes, 'B')}"
    )


def reference_of(shape: Shape, budget: Budget, source: Source | None = None) -> Prediction:
    """The parent's own prediction under a budget's workload, by what prices its child (`price`)."""
    workload = budget.workload
    workload.check_positions(shape.max_positions)
    source = source or source_of(shape, budget)
    costs = {batch: _parent_cost(shape, budget, batch, source) for batch in workload.batches}
    found = reference(costs, workload, budget.device.usable_bytes)
    return replace(found, gpus=found.gpus * budget.gpus)


def _parent_cost(shape: Shape, budget: Budget, batch: int, source: Source | None) -> Cost:
    blocks = shape.blocks
    if source is None:
        workload, device = budget.workload, budget.device
        return model_cost(shape, blocks, workload=workload, batch=batch, device=device)
    each = {block: block_cost(source, block, batch)[0] for block in set(blocks)}
    return sum((each[block] for block in blocks), outside_cost(source, batch)[0])
