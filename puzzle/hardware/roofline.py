"""The roofline: what blocks cost on any device, from its data sheet alone.

A kernel costs `max(flops / (peak * efficiency), bytes / (bandwidth * efficiency)) + launch`, a
block the sum over its kernels, with residual addition fused into the norm as serving engines do.
Prefill runs every kernel once on all prompts of the batch, decode once per new token.

Legend: D hidden, H heads, K KV heads, h head_dim, I intermediate size, V vocabulary, P prompt
tokens, N new tokens, B batch, M rows of a GEMM (B P in prefill, B in a decode step), E experts of
which a token takes k, w bytes of a weight, a bytes of an activation, c bytes of a cached number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from puzzle.blocks.kind import AttentionVariant, FFNVariant
from puzzle.blocks.sizes import Matrix
from puzzle.blocks.variant import GQA, Block, NoOp
from puzzle.budget import Workload
from puzzle.hardware.cost import NOTHING, Cost
from puzzle.hardware.devices import (
    BYTES,
    Device,
    Dtype,
    Weights,
    arithmetic,
    bytes_per_weight,
)
from puzzle.shape import Shape


@dataclass(frozen=True)
class _Pass:
    """One pass over the model: prefill of the batch, or the mean decode step.

    Attention counts are sums over the batch; a decode step takes their mean over the new tokens,
    which is exact because they grow linearly with the context.
    """

    rows: int  # M: tokens that go through the GEMMs
    pairs: float  # query-key pairs that attention computes
    cached: float  # cached positions that attention reads
    times: int  # how often the pass runs

    @classmethod
    def prefill(cls, workload: Workload, batch: int, window: int | None = None) -> _Pass:
        """Token t of a prompt sees min(t, window) positions; the keys are read once."""
        prompt = workload.prompt_tokens
        pairs = sum_of_contexts(0, prompt, window)
        return cls(batch * prompt, batch * pairs, batch * prompt, times=1)

    @classmethod
    def decode(cls, workload: Workload, batch: int, window: int | None = None) -> _Pass:
        """New token t sees min(P + t, window) positions."""
        new = workload.new_tokens
        context = sum_of_contexts(workload.prompt_tokens, new, window) / new
        return cls(batch, batch * context, batch * context, times=new)


def sum_of_contexts(before: int, tokens: int, window: int | None) -> int:
    """sum over t = 1..tokens of min(before + t, window)."""
    growing = tokens if window is None else min(tokens, max(0, window - before))
    full = (tokens - growing) * (window or 0)
    return growing * before + growing * (growing + 1) // 2 + full


@dataclass(frozen=True)
class _Meter:
    """Times the kernels of one pass on a device; everything in seconds."""

    device: Device
    workload: Workload
    rows: int

    @property
    def activation_bytes(self) -> int:
        return activation_bytes(self.workload)

    def gemm(self, matrix: Matrix) -> float:
        """(M k x in) (in x out): 2 M k in out operations; input and output a, weights w.

        Weights move once for each expert that some token takes: E (1 - (1 - k / E)^M) of them.
        """
        return self._gemm(matrix, self.workload.weights)

    def head(self, size_in: int, size_out: int) -> float:
        """The same in the activations' type, which is how engines keep embedding and head."""
        return self._gemm(Matrix(size_in, size_out), outside_dtype(self.workload))

    def elementwise(self, numbers_per_row: int) -> float:
        """A kernel that moves `numbers_per_row` activations in and out for each row."""
        moved = self.rows * numbers_per_row * self.activation_bytes
        return moved / self.device.bytes_per_s + self.device.launch_s

    def norm(self, size: int) -> float:
        """Residual addition and norm in one: two reads, two writes."""
        return self.elementwise(4 * size)

    def attention(self, step: _Pass, shape: Shape, variant: GQA) -> float:
        """4 H h operations per pair; queries and output a, cached keys and values c."""
        queries = variant.query_heads(shape) * shape.head_dim
        flops = 4 * queries * step.pairs
        moved: float = 2 * queries * self.rows * self.activation_bytes
        cached = step.cached * BYTES[self.workload.kv]
        moved += 2 * variant.kv_heads * shape.head_dim * cached
        dtype = outside_dtype(self.workload)
        compute_s = flops / self.device.attention_flops_per_s(dtype)
        return max(compute_s, moved / self.device.bytes_per_s) + self.device.launch_s

    def _gemm(self, matrix: Matrix, weights: Weights) -> float:
        rows = self.rows * matrix.used
        flops = 2 * rows * matrix.size_in * matrix.size_out
        moved = matrix.hit(self.rows) * matrix.size_in * matrix.size_out * bytes_per_weight(weights)
        moved += rows * (matrix.size_in + matrix.size_out) * self.activation_bytes
        compute_s = flops / self.device.gemm_flops_per_s(arithmetic(weights))
        return max(compute_s, moved / self.device.bytes_per_s) + self.device.launch_s


def outside_dtype(workload: Workload) -> Dtype:
    """The type of embedding, head and activations: float8 checkpoints keep them in bfloat16."""
    return "float32" if workload.weights == "float32" else "bfloat16"


def activation_bytes(workload: Workload) -> int:
    """Bytes of one number between kernels."""
    return BYTES[outside_dtype(workload)]


def attention_cost(
    shape: Shape, variant: AttentionVariant, *, workload: Workload, batch: int, device: Device
) -> Cost:
    """Cost of an attention half.

    GQA: norm, QKV projection, (q and k norm,) rotation with the write to the cache, attention,
    output projection. Cache: B 2 K h c min(P + N, window). Linear: norm and one GEMM.
    """
    if isinstance(variant, NoOp):
        return NOTHING
    prefill = _Pass.prefill(workload, batch, variant.sees)
    decode = _Pass.decode(workload, batch, variant.sees)
    seconds = [
        step.times * _attention_s(shape, variant, step, _Meter(device, workload, step.rows))
        for step in (prefill, decode)
    ]
    return _cost(
        shape.attention_params(variant),
        workload,
        seconds,
        kv_bytes=batch * kv_bytes_per_sequence(shape, variant, workload),
    )


def ffn_cost(
    shape: Shape, variant: FFNVariant, *, workload: Workload, batch: int, device: Device
) -> Cost:
    """Cost of an FFN half.

    FFN: norm, gate and up in one GEMM, activation, down. MoE: the same with a router before, and
    the sum of what a token's experts say after. Linear: norm and one GEMM.
    """
    if isinstance(variant, NoOp):
        return NOTHING
    seconds = [
        step.times * _maps_s(shape, variant.matrices(shape), _Meter(device, workload, step.rows))
        for step in (_Pass.prefill(workload, batch), _Pass.decode(workload, batch))
    ]
    return _cost(shape.ffn_params(variant), workload, seconds)


def block_cost(
    shape: Shape, block: Block, *, workload: Workload, batch: int, device: Device
) -> Cost:
    """Cost of one layer that holds `block`."""
    attention = attention_cost(
        shape, block.attention, workload=workload, batch=batch, device=device
    )
    return attention + ffn_cost(shape, block.ffn, workload=workload, batch=batch, device=device)


def outside_cost(shape: Shape, *, workload: Workload, batch: int, device: Device) -> Cost:
    """Cost of what lies outside the layers: embedding, final norm, head.

    The head sees one row per sequence: the last position in prefill, every step in decode.
    """
    seconds = []
    for step in (_Pass.prefill(workload, batch), _Pass.decode(workload, batch)):
        every_row, last_rows = (_Meter(device, workload, rows) for rows in (step.rows, batch))
        once = (
            every_row.elementwise(2 * shape.hidden_size)
            + every_row.norm(shape.hidden_size)
            + last_rows.head(shape.hidden_size, shape.vocab_size)
        )
        seconds.append(step.times * once)
    params = shape.outside_params()
    weight_bytes = params * BYTES[outside_dtype(workload)]
    return Cost(params, weight_bytes, 0, *seconds)


def model_cost(
    shape: Shape, blocks: Iterable[Block], *, workload: Workload, batch: int, device: Device
) -> Cost:
    """Cost of the whole model whose layers hold `blocks`."""

    def cost(block: Block) -> Cost:
        return block_cost(shape, block, workload=workload, batch=batch, device=device)

    outside = outside_cost(shape, workload=workload, batch=batch, device=device)
    held = list(blocks)
    each = {block: cost(block) for block in set(held)}
    return sum((each[block] for block in held), outside)


def kv_bytes_per_sequence(shape: Shape, variant: AttentionVariant, workload: Workload) -> int:
    """Cache of one finished request in one layer: 2 K h c min(P + N, window)."""
    kept = min(workload.total_tokens, variant.sees or workload.total_tokens)
    return 2 * variant.cached_heads * shape.head_dim * BYTES[workload.kv] * kept


def _attention_s(shape: Shape, variant: AttentionVariant, step: _Pass, meter: _Meter) -> float:
    if not isinstance(variant, GQA):
        return _maps_s(shape, variant.matrices(shape), meter)
    into, out = variant.matrices(shape)
    query_key_size = into.size_out - variant.kv_heads * shape.head_dim
    return (
        meter.norm(shape.hidden_size)
        + meter.gemm(into)
        + (meter.elementwise(2 * query_key_size) if shape.qk_norm else 0.0)
        + meter.elementwise(2 * into.size_out)
        + meter.attention(step, shape, variant)
        + meter.gemm(out)
    )


def _maps_s(shape: Shape, matrices: Sequence[Matrix], meter: _Meter) -> float:
    """Norm, GEMMs, and a pass over the activations between any two."""
    seconds = meter.norm(shape.hidden_size) + sum(map(meter.gemm, matrices))
    for before, after in pairwise(matrices):
        seconds += meter.elementwise(before.size_out * before.used + after.size_in * after.used)
    if matrices[-1].used > 1:
        seconds += meter.elementwise((matrices[-1].used + 1) * shape.hidden_size)
    return seconds


def _cost(params: int, workload: Workload, seconds: list[float], kv_bytes: int = 0) -> Cost:
    prefill_s, decode_s = seconds
    weight_bytes = math.ceil(params * bytes_per_weight(workload.weights))
    return Cost(params, weight_bytes, kv_bytes, prefill_s, decode_s)
