"""The gated activation in Triton, elementwise (with gradients) and fused into its two products.

Legend: N rows, T tokens, D hidden, F intermediate.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable
from triton import language as tl

from ..gemm.triton import GROUP, gemm, tile_of
from ..launch import LAUNCHES, PRECISION, Call, Launch, dot_type, rows


@triton.jit
def forward_kernel(gate_ptr, up_ptr, y_ptr, gate_stride, up_stride, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + f, f < F, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + f, f < F, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * F + f, y.to(y_ptr.dtype.element_ty), f < F)


@triton.jit
def backward_kernel(
    gate_ptr, up_ptr, dy_ptr, dgate_ptr, dup_ptr, gate_stride, up_stride, F, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + f, f < F, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + f, f < F, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * F + f, f < F, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate = dy * up * s * (1.0 + gate * (1.0 - s))
    tl.store(dgate_ptr + row * F + f, dgate.to(dgate_ptr.dtype.element_ty), f < F)
    tl.store(dup_ptr + row * F + f, (dy * gate * s).to(dup_ptr.dtype.element_ty), f < F)


@triton.jit
def gemm_kernel(
    x_ptr, gate_ptr, up_ptr, y_ptr, x_stride, gate_stride, up_stride, T, F, D,
    EVEN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile_f, tile_t = tile_of(tl.program_id(0), F, T, BLOCK_F, BLOCK_T, GROUP)
    f = tile_f * BLOCK_F + tl.arange(0, BLOCK_F)
    t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_D)[None, :]
    # rows past the end wrap around: read without a mask, never stored
    gate_tile = gate_ptr + (f % F).to(tl.int64)[:, None] * gate_stride + channel
    up_tile = up_ptr + (f % F).to(tl.int64)[:, None] * up_stride + channel
    x_tile = x_ptr + (t % T).to(tl.int64)[:, None] * x_stride + channel
    gate_acc = tl.zeros([BLOCK_F, BLOCK_T], tl.float32)
    up_acc = tl.zeros([BLOCK_F, BLOCK_T], tl.float32)
    for d in range(0, D, BLOCK_D):
        if EVEN:
            gate = tl.load(gate_tile + d)
            up = tl.load(up_tile + d)
            x = tl.load(x_tile + d)
        else:
            inside = channel < D - d
            gate = tl.load(gate_tile + d, inside, other=0.0)
            up = tl.load(up_tile + d, inside, other=0.0)
            x = tl.load(x_tile + d, inside, other=0.0)
        x_DT = tl.trans(x.to(DOT))
        gate_acc = tl.dot(gate.to(DOT), x_DT, gate_acc, input_precision=PRECISION)
        up_acc = tl.dot(up.to(DOT), x_DT, up_acc, input_precision=PRECISION)
    y = (gate_acc * tl.sigmoid(gate_acc) * up_acc).to(y_ptr.dtype.element_ty)
    y_tile = y_ptr + t.to(tl.int64)[None, :] * F + f[:, None]
    tl.store(y_tile, y, (f[:, None] < F) & (t[None, :] < T))


def forward_call(gate_NF: torch.Tensor, up_NF: torch.Tensor) -> Call:
    """Writes `y`."""
    N, F = gate_NF.shape
    arguments = {
        "gate_ptr": gate_NF,
        "up_ptr": up_NF,
        "y_ptr": gate_NF.new_empty(N, F),
        "gate_stride": gate_NF.stride(0),
        "up_stride": up_NF.stride(0),
        "F": F,
    }
    launch = LAUNCHES["swiglu"]
    grid = (N, triton.cdiv(F, launch.tiles["BLOCK"]))
    return Call(forward_kernel, grid, arguments, {}, launch)


def backward_call(gate_NF: torch.Tensor, up_NF: torch.Tensor, dy_NF: torch.Tensor) -> Call:
    """Writes `dgate` and `dup`."""
    N, F = gate_NF.shape
    arguments = {
        "gate_ptr": gate_NF,
        "up_ptr": up_NF,
        "dy_ptr": dy_NF,
        "dgate_ptr": gate_NF.new_empty(N, F),
        "dup_ptr": up_NF.new_empty(N, F),
        "gate_stride": gate_NF.stride(0),
        "up_stride": up_NF.stride(0),
        "F": F,
    }
    launch = LAUNCHES["swiglu"]
    grid = (N, triton.cdiv(F, launch.tiles["BLOCK"]))
    return Call(backward_kernel, grid, arguments, {}, launch)


def gemm_launch(T: int, dtype: torch.dtype) -> Launch:
    """The launch for a batch of T tokens."""
    if dtype == torch.float32:
        return LAUNCHES["swiglu-gemm-fp32"]
    size = "16" if T <= 16 else "64" if T <= 64 else "large"
    return LAUNCHES[f"swiglu-gemm-{size}"]


def gemm_call(
    x_TD: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    *,
    launch: Launch | None = None,
) -> Call:
    """Writes the hidden channels `y`; `weights` are gate and up [F, D]."""
    (T, D), (gate_FD, up_FD) = x_TD.shape, weights
    F = gate_FD.shape[0]
    launch = launch or gemm_launch(T, x_TD.dtype)
    tiles = launch.tiles
    arguments = {
        "x_ptr": x_TD,
        "gate_ptr": gate_FD,
        "up_ptr": up_FD,
        "y_ptr": x_TD.new_empty(T, F),
        "x_stride": x_TD.stride(0),
        "gate_stride": gate_FD.stride(0),
        "up_stride": up_FD.stride(0),
        "T": T,
        "F": F,
        "D": D,
    }
    constants = {
        "EVEN": D % tiles["BLOCK_D"] == 0,
        "DOT": dot_type(x_TD.dtype),
        "PRECISION": PRECISION,
        "GROUP": GROUP,
    }
    grid = (triton.cdiv(F, tiles["BLOCK_F"]) * triton.cdiv(T, tiles["BLOCK_T"]),)
    return Call(gemm_kernel, grid, arguments, constants, launch)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """As reference.swiglu."""
    return _SwiGLU.apply(gate, up)


def swiglu_ffn(
    x: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """As reference.swiglu_ffn."""
    done = gemm_call(rows(x), (rows(gate_FD), rows(up_FD))).run()
    return gemm(done["y_ptr"], down_DF).view(x.shape)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate_NF, up_NF = rows(gate), rows(up)
        ctx.save_for_backward(gate_NF, up_NF)
        return forward_call(gate_NF, up_NF).run()["y_ptr"].view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate_NF, up_NF = ctx.saved_tensors
        (dy,) = grads
        done = backward_call(gate_NF, up_NF, dy.contiguous().view(gate_NF.shape)).run()
        return tuple(done[name].view(dy.shape) for name in ("dgate_ptr", "dup_ptr"))
