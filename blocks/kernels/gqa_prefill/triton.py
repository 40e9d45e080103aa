"""Causal grouped-query attention in Triton: one program a tile of queries of one head.

Legend: B batch, H query heads, K KV heads, T queries, S keys (the queries are the last T of
them), d channels of a head. Softmax is computed online, in base 2.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import torch
import triton
from triton import language as tl

from ..launch import LAUNCHES, PRECISION, Call, Launch, dot_type, strides

LOG2E = 1.4426950408889634


@triton.jit
def attend(
    q, acc, peak, total, k_ptr, v_ptr, k_stride_s, v_stride_s, position, start, end, S, window,
    scale, WINDOWED: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold keys `start` to `end` into the running softmax; unmasked ones all lie in sight."""
    channel = tl.arange(0, BLOCK_D)[None, :]
    for s in range(start, end, BLOCK_S):
        key = s + tl.arange(0, BLOCK_S)
        k_tile = k_ptr + key[:, None] * k_stride_s + channel
        v_tile = v_ptr + key[:, None] * v_stride_s + channel
        if MASKED or D != BLOCK_D:
            inside = (key[:, None] < S) & (channel < D)
            k = tl.load(k_tile, inside, other=0.0)
            v = tl.load(v_tile, inside, other=0.0)
        else:
            k = tl.load(k_tile)
            v = tl.load(v_tile)
        scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision=PRECISION)
        if MASKED:
            seen = key[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (key[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        weight = tl.exp2(scores * scale - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weight, 1)
        acc = acc * fade[:, None]
        acc = tl.dot(weight.to(DOT), v.to(DOT), acc, input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


@triton.jit
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, o_stride_b, o_stride_h, o_stride_t,
    H, group, T, S, window, scale,
    WINDOWED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    q_ptr += b * q_stride_b + h * q_stride_h
    k_ptr += b * k_stride_b + (h // group) * k_stride_h
    v_ptr += b * v_stride_b + (h // group) * v_stride_h
    o_ptr += b * o_stride_b + h * o_stride_h
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_D)[None, :]
    inside = (t[:, None] < T) & (channel < D)
    q = tl.load(q_ptr + t[:, None] * q_stride_t + channel, inside, other=0.0).to(DOT)

    first = S - T + tile * BLOCK_T  # position of the tile's first query
    position = S - T + t
    end = tl.minimum(S, first + BLOCK_T)
    if WINDOWED:  # few tiles, most of them cut by an edge: one loop, all of it masked
        start = tl.maximum(0, first - window + 1) // BLOCK_S * BLOCK_S
        diagonal = start
    else:
        start = 0
        diagonal = (first + 1) // BLOCK_S * BLOCK_S  # every query sees all keys before it

    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_T], -1e30, tl.float32)  # finite: a tile may hold no key in sight
    total = tl.zeros([BLOCK_T], tl.float32)
    if not WINDOWED:
        acc, peak, total = attend(
            q, acc, peak, total, k_ptr, v_ptr, k_stride_s, v_stride_s, position,
            start, diagonal, S, window, scale,
            False, False, D, BLOCK_D, BLOCK_S, DOT, PRECISION,
        )  # fmt: skip
    acc, peak, total = attend(
        q, acc, peak, total, k_ptr, v_ptr, k_stride_s, v_stride_s, position,
        diagonal, end, S, window, scale,
        WINDOWED, True, D, BLOCK_D, BLOCK_S, DOT, PRECISION,
    )  # fmt: skip
    some = tl.where(total > 0, total, 1.0)  # a query past the last may see no key
    o = (acc / some[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(o_ptr + t[:, None] * o_stride_t + channel, o, inside)


def prefill_launch(d: int, dtype: torch.dtype) -> Launch:
    """The launch for heads of d channels."""
    if dtype == torch.float32:
        return LAUNCHES["gqa_prefill-fp32"]
    return LAUNCHES[f"gqa_prefill-{max(64, triton.next_power_of_2(d))}"]


def prefill_call(
    q_BHTd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    *,
    window: int | None,
    scale: float | None,
    launch: Launch | None = None,
) -> Call:
    """Writes `o`, laid out as q is."""
    B, H, T, d = q_BHTd.shape
    K, S = k_BKSd.shape[1:3]
    launch = launch or prefill_launch(d, q_BHTd.dtype)
    o_BHTd = torch.empty_like(q_BHTd)
    arguments = {
        "q_ptr": q_BHTd,
        "k_ptr": k_BKSd,
        "v_ptr": v_BKSd,
        "o_ptr": o_BHTd,
        **strides("q", q_BHTd, "bht"),
        **strides("k", k_BKSd, "bhs"),
        **strides("v", v_BKSd, "bhs"),
        **strides("o", o_BHTd, "bht"),
        "H": H,
        "group": H // K,
        "T": T,
        "S": S,
        "window": window or 0,
        "scale": (d**-0.5 if scale is None else scale) * LOG2E,
    }
    constants = {
        "WINDOWED": window is not None and window < S,
        "D": d,
        "BLOCK_D": max(16, triton.next_power_of_2(d)),
        "DOT": dot_type(q_BHTd.dtype),
        "PRECISION": PRECISION,
    }
    grid = (triton.cdiv(T, launch.tiles["BLOCK_T"]), B * H)
    return Call(prefill_kernel, grid, arguments, constants, launch)


def gqa_prefill(
    q_BHTd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As reference.gqa_prefill."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTd, k_BKSd, v_BKSd))
    return prefill_call(q, k, v, window=window, scale=scale).run()["o_ptr"]
