"""What serving a model comes to, from its sizes alone: memory, throughput and latency by batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from puzzle.budget import Workload
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import Device, Dtype, Weights, device
from puzzle.hardware.published import model
from puzzle.hardware.serving import Engine, Model, Served
from puzzle.hardware.source import EXTRAPOLATED
from puzzle.hardware.tables import open_source
from puzzle.units import Quantity, parse, show

BATCHES = (1, 8, 64, 512)  # shown beside the largest that fits


@dataclass(frozen=True)
class Estimate:
    """A model on a device under a workload, at several batches; the last is the largest."""

    model: Model
    rows: tuple[Served, ...]

    @property
    def best(self) -> Served:
        """The batch of highest throughput."""
        return max(self.rows, key=lambda row: row.tokens_per_s)

    def facts(self) -> list[tuple[str, str]]:
        """Sizes, and what they leave for the cache."""
        served, model, device = self.rows[-1], self.model, self.model.device
        memory_bytes = device.memory_gib * 2**30 * served.gpus
        return [
            ("parameters", f"{served.params:,}"),
            ("layers", f"{model.blocks.total()}, of {len(model.blocks)} kinds"),
            ("weights", f"{show(served.weight_bytes, 'B')} of {show(memory_bytes, 'B')}"),
            ("cache of a request", show(model.request_bytes, "B")),
            ("room for the cache", show(model.cache_bytes, "B")),
            ("bound by", served.bound),
            ("seconds from", ", ".join(self.sources())),
        ]

    def sources(self) -> list[str]:
        """Where the seconds come from; what was extrapolated says so."""
        return sorted({name for row in self.rows for name in row.sources})

    def warnings(self) -> list[str]:
        """What a reader should know before believing the numbers."""
        beyond = [name for name in self.sources() if name.startswith(EXTRAPOLATED)]
        return [
            f"some seconds lie {name}'s measurements and are extrapolated log-log"
            for name in beyond
        ]

    def table(self) -> list[list[str]]:
        """One line a batch: batch, tokens per second per GPU, first token, time per token."""
        return [
            [
                f"{row.batch:.0f}" + (" (best)" if row is self.best else ""),
                show(row.tokens_per_s, "tok/s"),
                show(row.ttft_s, "s"),
                show(row.tpot_s, "s"),
                show(row.kv_bytes, "B"),
            ]
            for row in self.rows
        ]


def estimate(
    name_or_path: str | Path,
    hardware: str,
    workload: str,
    *,
    dtypes: str = "",
    costs: str = "roofline",
    reserve: str = "2 GB",
) -> Estimate:
    """Predict a model's serving without its weights.

    Args:
        name_or_path: see `published.model`.
        hardware: a device's name, or 8xh100-sxm for eight that share every layer.
        workload: prompt and new tokens of a request, like 128/1024.
        dtypes: weights and cache, like float8/float8; the best the device has when empty.
        costs: roofline, public, measured, or the path of a table.
        reserve: memory of each GPU that neither weights nor cache may take.
    """
    shape, blocks = model(name_or_path)
    gpus, name = _machine(hardware)
    found = device(name)
    asked = workload_of(workload, dtypes or _usual(found), BATCHES)
    engine = Engine(reserve_bytes=_bytes(reserve))
    source = open_source(costs, shape, asked, name, gpus)
    whole = Model.of(source, blocks, found, engine)
    largest = whole.saturated()
    smaller = (whole.at(float(batch)) for batch in BATCHES if batch < largest.batch)
    return Estimate(whole, (*smaller, largest))


def _machine(hardware: str) -> tuple[int, str]:
    """How many GPUs, and of which device."""
    match = re.fullmatch(r"(?:([1-9]\d*) ?x ?)?(.+)", hardware.strip())
    if not match:
        raise PuzzleError("--hardware is empty; give a device like h100-sxm, or 8xh100-sxm")
    return int(match[1] or 1), match[2]


def _usual(device: Device) -> str:
    """float8 where the device multiplies it, as NVIDIA publishes its figures; else bfloat16."""
    dtype = "float8" if "float8" in device.peak_tflops else "bfloat16"
    return f"{dtype}/{dtype}"


def workload_of(lengths: str, dtypes: str, batches: Sequence[int]) -> Workload:
    """Read `128/1024` and `float8/float8`; PuzzleError says what does not read."""
    match = re.fullmatch(r"\s*([1-9]\d*)\s*/\s*([1-9]\d*)\s*", lengths)
    if not match:
        raise PuzzleError(f"workload {lengths!r} is not prompt/new tokens, like 128/1024")
    weights, _, kv = dtypes.partition("/")
    _one_of("weights", weights, get_args(Weights))
    _one_of("cache", kv or weights, get_args(Dtype))
    return Workload(
        prompt_tokens=int(match[1]),
        new_tokens=int(match[2]),
        batches=tuple(batches),
        weights=cast(Weights, weights),
        kv=cast(Dtype, kv or weights),
    )


def _one_of(what: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise PuzzleError(
            f"{what} of type {word!r} are unknown; write --dtypes weights/cache, "
            f"each one of {', '.join(known)}"
        )


def _bytes(text: str) -> int:
    try:
        amount = parse(text)
    except ValueError as error:
        raise PuzzleError(f"reserve: {error}") from None
    if not isinstance(amount, Quantity) or amount.unit != "B":
        raise PuzzleError(f"reserve is {text!r}, expected an amount of memory like 2 GB")
    return int(amount.value)
