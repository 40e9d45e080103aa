"""Rotary position embedding in Triton: one program turns a few heads of one token.

Legend: B batch, H heads, T tokens, d channels of a head, r of them turned (HALF = r / 2).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable
from triton import language as tl

from ..launch import LAUNCHES, Call, strides


@triton.jit
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr,
    x_stride_b, x_stride_h, x_stride_t, y_stride_b, y_stride_h, y_stride_t,
    cos_stride_b, cos_stride_t, sin_stride_b, sin_stride_t, H,
    HALF: tl.constexpr, REST: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
    INVERSE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads = (tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    half = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < H) & (half < HALF)
    cos_ptr += b * cos_stride_b + t * cos_stride_t + half
    sin_ptr += b * sin_stride_b + t * sin_stride_t + half
    cos_left = tl.load(cos_ptr, half < HALF, other=0.0).to(tl.float32)
    cos_right = tl.load(cos_ptr + HALF, half < HALF, other=0.0).to(tl.float32)
    sin_left = tl.load(sin_ptr, half < HALF, other=0.0).to(tl.float32)
    sin_right = tl.load(sin_ptr + HALF, half < HALF, other=0.0).to(tl.float32)
    if INVERSE:  # the transpose: what the left half gave the right comes back
        sin_left, sin_right = -sin_right, -sin_left
    x_ptr += b * x_stride_b + t * x_stride_t + heads * x_stride_h
    y_ptr += b * y_stride_b + t * y_stride_t + heads * y_stride_h
    left = tl.load(x_ptr + half, inside, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + half + HALF, inside, other=0.0).to(tl.float32)
    turned_left = left * cos_left - right * sin_left
    turned_right = right * cos_right + left * sin_right
    tl.store(y_ptr + half, turned_left.to(y_ptr.dtype.element_ty), inside)
    tl.store(y_ptr + half + HALF, turned_right.to(y_ptr.dtype.element_ty), inside)
    if REST > 0:
        channel = tl.arange(0, BLOCK_REST)[None, :]
        inside = (heads < H) & (channel < REST)
        rest = tl.load(x_ptr + 2 * HALF + channel, inside, other=0.0)
        tl.store(y_ptr + 2 * HALF + channel, rest, inside)


def rope_call(
    x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor, *, inverse: bool
) -> Call:
    """Writes `y`, laid out as x is; `inverse` applies the transpose, as gradients need."""
    B, H, T, d = x_BHTd.shape
    r = cos_BTr.shape[-1]
    y_BHTd = torch.empty_like(x_BHTd)
    cos, sin = cos_BTr.expand(B, -1, -1), sin_BTr.expand(B, -1, -1)
    arguments = {
        "x_ptr": x_BHTd,
        "cos_ptr": cos,
        "sin_ptr": sin,
        "y_ptr": y_BHTd,
        **strides("x", x_BHTd, "bht"),
        **strides("y", y_BHTd, "bht"),
        **strides("cos", cos, "bt"),
        **strides("sin", sin, "bt"),
        "H": H,
    }
    constants = {
        "HALF": r // 2,
        "REST": d - r,
        "BLOCK_HALF": triton.next_power_of_2(r // 2),
        "BLOCK_REST": triton.next_power_of_2(max(d - r, 1)),
        "INVERSE": inverse,
    }
    launch = LAUNCHES["rope"]
    grid = (T, B, triton.cdiv(H, launch.tiles["BLOCK_H"]))
    return Call(rope_kernel, grid, arguments, constants, launch)


def rope(x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor) -> torch.Tensor:
    """As reference.rope; no gradient of the angles."""
    return _Rope.apply(x_BHTd, _dense(cos_BTr), _dense(sin_BTr))


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _turn(grads[0], *ctx.saved_tensors, inverse=True), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool) -> torch.Tensor:
    return rope_call(_dense(x), cos, sin, inverse=inverse).run()["y_ptr"]


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
