"""Kernels from public measured tables: the optional package `aiconfigurator-core` (Apache-2.0).

It ships parquet files of milliseconds, <system>/<op>/<framework>/<version>/*.parquet: GEMMs by
m, n, k; prefill and decode attention by batch, length, heads, KV heads, head_dim and cache type;
all-reduce by GPUs and numbers (its `message_size` counts numbers, not bytes). What they lack
(norms, activations, head sizes) comes from the roofline, and says so.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from puzzle.errors import PuzzleError
from puzzle.hardware.devices import BYTES, Device, Dtype, Weights, device
from puzzle.hardware.interpolate import Table, lookup
from puzzle.hardware.kernels import Heads, Roofline
from puzzle.hardware.source import EXTRAPOLATED, Timed

PACKAGE = "aiconfigurator_core"
FRAMEWORK = "trtllm"  # its float8 GEMMs have no launch floor, unlike vLLM's of blocks
NAMES: dict[str, str] = {"bfloat16": "bfloat16", "float8": "fp8", "int4": "int4_wo"}
MS = 1e-3


@dataclass(frozen=True)
class Public:
    """Kernels by table; `rest` answers where there is none."""

    system: str
    device: Device
    rest: Roofline
    name: str = field(default="aiconfigurator-core")

    @classmethod
    def of(cls, name: str) -> Public:
        """The tables of a device; PuzzleError says what to install, or which devices there are."""
        system = name.replace("-", "_")
        folder = _data()
        if not (folder / system).is_dir():
            known = sorted(path.name.replace("_", "-") for path in folder.iterdir())
            raise PuzzleError(
                f"aiconfigurator-core has no tables of {name}; it has {', '.join(known)}"
            )
        found = device(name)
        return cls(system, found, Roofline(found))

    def gemm(self, rows: float, size_in: float, size_out: float, weights: Weights) -> Timed:
        """By n, k and m."""
        table = _gemms(self.system).get(NAMES.get(weights, weights))
        if not table:
            return self.rest.gemm(rows, size_in, size_out, weights)
        return self._found(lookup(table, size_out, size_in, rows))

    def grouped_gemm(
        self, rows: float, matrices: float, size_in: float, size_out: float, weights: Weights
    ) -> Timed:
        """There are no tables of these that are read here."""
        return self.rest.grouped_gemm(rows, matrices, size_in, size_out, weights)

    def elementwise(self, numbers: float) -> Timed:
        """There are no tables of these."""
        return self.rest.elementwise(numbers)

    def decode_attention(self, heads: Heads, sequences: float, context: float) -> Timed:
        """By KV heads, heads, context and batch; never faster than the memory's peak."""
        table = _attention(self.system, "generation").get((heads.cache, heads.head_dim))
        if not table:
            return self.rest.decode_attention(heads, sequences, context)
        seconds, beyond = lookup(table, heads.kv, heads.query, context, sequences)
        moved = 2 * sequences * context * heads.kv * heads.head_dim * BYTES[heads.cache]
        floor_s = moved / (self.device.bandwidth_tb_s * 1e12)
        return self._found((max(seconds, floor_s), beyond))

    def prefill_attention(self, heads: Heads, prompts: float, tokens: int, pairs: int) -> Timed:
        """By KV heads, heads, length and batch; a window's is the full one's share of pairs."""
        table = _attention(self.system, "context").get((heads.cache, heads.head_dim))
        if not table:
            return self.rest.prefill_attention(heads, prompts, tokens, pairs)
        seconds, beyond = lookup(table, heads.kv, heads.query, tokens, prompts)
        share = pairs / (tokens * (tokens + 1) // 2)
        return self._found((seconds * share, beyond))

    def all_reduce(self, numbers: float, gpus: int) -> Timed:
        """By GPUs and numbers: bare, without the waiting for each other that whole models show."""
        if gpus == 1:
            return Timed()
        table = _all_reduce(self.system)
        if gpus not in table:
            return self.rest.all_reduce(numbers, gpus)
        return self._found(lookup(table[gpus], numbers))

    def _found(self, answer: tuple[float, bool]) -> Timed:
        seconds, beyond = answer
        return Timed(seconds, frozenset({(EXTRAPOLATED if beyond else "") + self.name}))


def _data() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise PuzzleError(
            "the public tables are not installed; run pip install 'puzzle-nas[tables]', "
            "or take --costs roofline"
        )
    return Path(spec.origin).parent / "systems" / "data"


def _newest(system: str, op: str, framework: str, file: str) -> Any:
    """The rows of the newest version of a table, as a data frame; None where there is none."""
    import pandas as pd

    paths = sorted((_data() / system / op / framework).glob(f"*/{file}"))
    return pd.read_parquet(max(paths, key=_version)) if paths else None


def _version(path: Path) -> list[int]:
    """The numbers in the name of a version's folder, which 1.9 is before 1.10 by."""
    return [int(number) for number in re.findall(r"\d+", path.parent.name)]


def _nest(frame: Any, columns: list[str]) -> Table:
    """Nested mappings over the columns, the median of repeated rows, in seconds."""
    medians = frame.groupby(columns)["latency"].median()
    tree: dict[float, Any] = {}
    for sizes, latency_ms in medians.items():
        node = tree
        for size in sizes[:-1]:
            node = node.setdefault(float(size), {})
        node[float(sizes[-1])] = float(latency_ms) * MS
    return tree


@cache
def _gemms(system: str) -> dict[str, Table]:
    frame = _newest(system, "gemm", FRAMEWORK, "gemm_perf.parquet")
    if frame is None:
        return {}
    return {str(t): _nest(rows, ["n", "k", "m"]) for t, rows in frame.groupby("gemm_dtype")}


@cache
def _attention(system: str, phase: str) -> dict[tuple[Dtype, int], Table]:
    frame = _newest(system, "attention", FRAMEWORK, f"{phase}_attention_perf.parquet")
    found: dict[tuple[Dtype, int], Table] = {}
    if frame is None:
        return found
    frame = frame[frame.window_size == 0].assign(context=frame.step + 1)
    length = "context" if phase == "generation" else "isl"
    columns = ["num_key_value_heads", "num_heads", length, "batch_size"]
    types: dict[str, Dtype] = {"bfloat16": "bfloat16", "fp8": "float8"}
    for (cache_type, head_dim), rows in frame.groupby(["kv_cache_dtype", "head_dim"]):
        if cache_type in types:
            found[types[cache_type], int(head_dim)] = _nest(rows, columns)
    return found


@cache
def _all_reduce(system: str) -> dict[int, Table]:
    frame = _newest(system, "comm", "nccl", "nccl_perf.parquet")
    found: dict[int, Table] = defaultdict(dict)
    if frame is not None:
        chosen = frame[(frame.op_name == "all_reduce") & (frame.nccl_dtype == "half")]
        for gpus, rows in chosen.groupby("num_gpus"):
            medians = rows.groupby("message_size")["latency"].median() * MS
            found[int(gpus)] = {float(size): float(s) for size, s in medians.items()}
    return found
