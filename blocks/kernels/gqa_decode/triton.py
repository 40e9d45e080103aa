"""Decode attention in Triton, split over the cache: partial softmaxes, then a combine step.

Legend: B batch, H query heads, K KV heads, S rows of the cache, d channels of a head, P splits.
One program reads one split of one KV head once for all of its H / K query heads, so the kernel
is bound by the bytes of the cache; 16 padded query rows keep it on the small tensor-core
instruction (HMMA), since HGMMA would pad them to 64.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import torch
import triton
from triton import language as tl

from ..launch import LAUNCHES, PRECISION, SMS, Call, dot_type, run, strides

LOG2E = 1.4426950408889634
SMALLEST_SPLIT = 256  # rows of the cache: below it the combine step costs more than it hides


@triton.jit
def split_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, o_ptr, peak_ptr,
    q_stride_b, q_stride_h, k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s, o_stride_b, o_stride_h, o_stride_p,
    H, group, window, scale,
    WINDOWED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    split, splits = tl.program_id(0), tl.num_programs(0)
    kv_head, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + b).to(tl.int32)
    start = 0
    if WINDOWED:
        start = tl.maximum(0, length - window)
    share = tl.cdiv(tl.cdiv(length - start, splits), BLOCK_S) * BLOCK_S
    start += split * share
    end = tl.minimum(length, start + share)

    member = tl.arange(0, BLOCK_G)
    channel = tl.arange(0, BLOCK_D)[None, :]
    head = kv_head * group + member
    inside = (member[:, None] < group) & (channel < D)
    q_tile = q_ptr + b * q_stride_b + head[:, None] * q_stride_h + channel
    q = tl.load(q_tile, inside, other=0.0).to(DOT)
    k_ptr += b * k_stride_b + kv_head * k_stride_h
    v_ptr += b * v_stride_b + kv_head * v_stride_h

    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_G], -1e30, tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    for s in range(start, end, BLOCK_S):
        key = s + tl.arange(0, BLOCK_S)
        there = (key[:, None] < end) & (channel < D)
        row = key[:, None].to(tl.int64)
        k = tl.load(k_ptr + row * k_stride_s + channel, there, other=0.0).to(DOT)
        v = tl.load(v_ptr + row * v_stride_s + channel, there, other=0.0).to(DOT)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.where(key[None, :] < end, scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        weight = tl.exp2(scores * scale - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weight, 1)
        acc = tl.dot(weight.to(DOT), v, acc * fade[:, None], input_precision=PRECISION)
        peak = new_peak
    some = tl.where(total > 0, total, 1.0)  # a split past the end holds nothing
    o = (acc / some[:, None]).to(o_ptr.dtype.element_ty)
    o_tile = o_ptr + b * o_stride_b + head[:, None] * o_stride_h + split * o_stride_p + channel
    tl.store(o_tile, o, inside)
    log_sum = tl.where(total > 0, peak + tl.log2(some), -float("inf"))
    tl.store(peak_ptr + (b * H + head) * splits + split, log_sum, member < group)


@triton.jit
def combine_kernel(
    part_ptr, peak_ptr, o_ptr, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    peak = tl.load(peak_ptr + head * splits + split, split < splits, other=-float("inf"))
    weight = tl.exp2(peak - tl.max(peak, 0))
    inside = (split[:, None] < splits) & (channel[None, :] < D)
    tile = part_ptr + (head * splits + split[:, None]) * D + channel[None, :]
    part = tl.load(tile, inside, other=0.0)
    o = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(o_ptr + head * D + channel, o.to(o_ptr.dtype.element_ty), channel < D)


def split_count(B: int, K: int, S: int) -> int:
    """Splits that give every multiprocessor about two programs, none below 256 rows."""
    wanted = triton.cdiv(2 * SMS, B * K)
    return max(1, min(wanted, triton.cdiv(S, SMALLEST_SPLIT), 64))


def decode_calls(
    q_BHd: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    lengths_B: torch.Tensor,
    *,
    window: int | None,
    scale: float | None,
    splits: int | None = None,
) -> list[Call]:
    """The split call and, with more than one split, the combine call; the last writes `o`."""
    B, H, d = q_BHd.shape
    k, v = kv
    K, S = k.shape[1:3]
    splits = splits or split_count(B, K, min(S, window or S))
    kind = torch.float32 if splits > 1 else q_BHd.dtype
    o_BHPd = q_BHd.new_empty(B, H, splits, d, dtype=kind)
    peak = q_BHd.new_empty(B, H, splits, dtype=torch.float32)
    launch = LAUNCHES["gqa_decode-fp32" if q_BHd.dtype == torch.float32 else "gqa_decode"]
    arguments = {
        "q_ptr": q_BHd,
        "k_ptr": k,
        "v_ptr": v,
        "lengths_ptr": lengths_B,
        "o_ptr": o_BHPd,
        "peak_ptr": peak,
        **strides("q", q_BHd, "bh"),
        **strides("k", k, "bhs"),
        **strides("v", v, "bhs"),
        **strides("o", o_BHPd, "bhp"),
        "H": H,
        "group": H // K,
        "window": window or 0,
        "scale": (d**-0.5 if scale is None else scale) * LOG2E,
    }
    constants = {
        "WINDOWED": window is not None,
        "D": d,
        "BLOCK_D": max(16, triton.next_power_of_2(d)),
        "BLOCK_G": max(16, triton.next_power_of_2(H // K)),
        "DOT": dot_type(q_BHd.dtype),
        "PRECISION": PRECISION,
    }
    calls = [Call(split_kernel, (splits, K, B), arguments, constants, launch)]
    if splits > 1:
        calls.append(_combine_call(o_BHPd, peak, q_BHd.dtype))
    return calls


def _combine_call(part_BHPd: torch.Tensor, peak: torch.Tensor, dtype: torch.dtype) -> Call:
    B, H, splits, d = part_BHPd.shape
    arguments = {
        "part_ptr": part_BHPd,
        "peak_ptr": peak,
        "o_ptr": part_BHPd.new_empty(B, H, d, dtype=dtype),
        "splits": splits,
    }
    constants = {
        "D": d,
        "BLOCK_D": triton.next_power_of_2(d),
        "BLOCK_P": triton.next_power_of_2(splits),
    }
    return Call(combine_kernel, (B * H,), arguments, constants, LAUNCHES["gqa_decode-combine"])


def gqa_decode(
    q_BHd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """As reference.gqa_decode."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHd, k_BKSd, v_BKSd))
    calls = decode_calls(q, (k, v), lengths_B.contiguous(), window=window, scale=scale)
    return run(calls)["o_ptr"].view(q_BHd.shape)
