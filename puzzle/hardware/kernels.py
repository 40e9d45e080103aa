"""Seconds of single serving kernels on one device, by formula; tables may stand in for them.

The roofline of `roofline.py`, closer: each kind of kernel has its own efficiency, the roof bends
where compute meets memory, attention over a float8 cache stops at the arithmetic of converting
numbers, and GPUs talk. Constants are per device and engine, never per model (`devices.yaml`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from puzzle.errors import PuzzleError
from puzzle.hardware.devices import BYTES, Device, Dtype, Weights, arithmetic, bytes_per_weight
from puzzle.hardware.source import Timed

ACTIVATION_BYTES = 2
# Decode attention over a float8 cache converts every number before it multiplies: the operations a
# second where that binds. Fitted to TensorRT-LLM 0.17's published throughputs; models of four and
# of eight query heads a KV head give the same within 6 % (benchmarks/throughput.py).
FLOAT8_CACHE_TFLOPS = 56.0


@dataclass(frozen=True)
class Heads:
    """Attention of one layer on one GPU."""

    query: float
    kv: float
    head_dim: int
    cache: Dtype


class Kernels(Protocol):
    """Seconds of one kernel on one GPU."""

    def gemm(self, rows: float, size_in: float, size_out: float, weights: Weights) -> Timed:
        """(rows x in) (in x out)."""

    def grouped_gemm(
        self, rows: float, matrices: float, size_in: float, size_out: float, weights: Weights
    ) -> Timed:
        """The same with the rows shared out over so many matrices."""

    def elementwise(self, numbers: float) -> Timed:
        """A kernel that moves so many activations in and out."""

    def decode_attention(self, heads: Heads, sequences: float, context: float) -> Timed:
        """One new token each, that sees `context` positions."""

    def prefill_attention(self, heads: Heads, prompts: float, tokens: int, pairs: int) -> Timed:
        """Prompts of `tokens` tokens, each with so many query-key pairs."""

    def all_reduce(self, numbers: float, gpus: int) -> Timed:
        """So many activations summed over GPUs."""


@dataclass(frozen=True)
class Roofline:
    """Kernels by formula from a device's data sheet and what kernels reach of it."""

    device: Device
    float8_cache_tflops: float = FLOAT8_CACHE_TFLOPS
    name: str = "roofline"

    def gemm(self, rows: float, size_in: float, size_out: float, weights: Weights) -> Timed:
        """2 rows in out operations; weights, input and output move once."""
        return self.grouped_gemm(rows, 1.0, size_in, size_out, weights)

    def grouped_gemm(
        self, rows: float, matrices: float, size_in: float, size_out: float, weights: Weights
    ) -> Timed:
        """As many operations; each matrix's weights move once."""
        dtype = arithmetic(weights)
        reached = self.device.fit.gemm.get(dtype, self.device.efficiency.gemm)
        flops = 2 * rows * size_in * size_out
        compute_s = flops / (self.device.peak_flops_per_s(dtype) * reached)
        moved = matrices * size_in * size_out * bytes_per_weight(weights)
        moved += rows * (size_in * min(BYTES[dtype], ACTIVATION_BYTES) + size_out * 2)
        return self._bent(compute_s, moved / self._bytes_per_s, self.device.fit.bend)

    def elementwise(self, numbers: float) -> Timed:
        """Bound by memory."""
        return self._launched(numbers * ACTIVATION_BYTES / self._bytes_per_s)

    def decode_attention(self, heads: Heads, sequences: float, context: float) -> Timed:
        """Reads the cache; over float8 it converts beside, with half the overlap (bend 2)."""
        seen = sequences * context * heads.head_dim
        moved = 2 * seen * heads.kv * BYTES[heads.cache]
        moved += 2 * sequences * heads.query * heads.head_dim * ACTIVATION_BYTES
        cache_bytes_per_s = self.device.bandwidth_tb_s * 1e12 * self.device.fit.cache_bandwidth
        converts = heads.cache == "float8"
        compute_s = 4 * seen * heads.query / (self.float8_cache_tflops * 1e12) if converts else 0.0
        return self._bent(compute_s, moved / cache_bytes_per_s, 2.0)

    def prefill_attention(self, heads: Heads, prompts: float, tokens: int, pairs: int) -> Timed:
        """4 head_dim operations a pair and query head, at a rate that grows with the prompt."""
        fit = self.device.fit
        tflops = fit.prefill_tflops.get(heads.cache) or min(fit.prefill_tflops.values())
        rate = tflops * 1e12 * tokens / (tokens + fit.prefill_half_tokens)
        return self._launched(4 * heads.query * heads.head_dim * prompts * pairs / rate)

    def all_reduce(self, numbers: float, gpus: int) -> Timed:
        """latency (1 + log2 n) + 2 (n - 1) / n bytes over the bus."""
        if gpus == 1:
            return Timed()
        link = self.device.link
        if link is None or gpus not in link.bus_gb_s:
            among = ", ".join(map(str, link.bus_gb_s)) if link else "1"
            raise PuzzleError(
                f"no link between {gpus} of these GPUs is known, only between {among}; "
                "add `link` to the device or take fewer GPUs"
            )
        crossing = 2 * (gpus - 1) / gpus * numbers * ACTIVATION_BYTES
        latency_s = link.latency_us * 1e-6 * (1 + math.log2(gpus))
        return self._from(latency_s + crossing / (link.bus_gb_s[gpus] * 1e9))

    @property
    def _bytes_per_s(self) -> float:
        return self.device.bandwidth_tb_s * 1e12 * self.device.fit.bandwidth

    def _bent(self, compute_s: float, memory_s: float, bend: float) -> Timed:
        return self._launched(
            math.hypot(compute_s, memory_s)
            if bend == 2.0
            else (compute_s**bend + memory_s**bend) ** (1 / bend)
        )

    def _launched(self, seconds: float) -> Timed:
        return self._from(seconds + self.device.fit.launch_us * 1e-6)

    def _from(self, seconds: float) -> Timed:
        return Timed(seconds, frozenset({self.name}))
