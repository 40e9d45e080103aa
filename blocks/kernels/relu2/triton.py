"""The squared ReLU in Triton, elementwise with gradients; the network fuses it into its product."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable
from triton import language as tl

from ..gemm.triton import gemm
from ..launch import LAUNCHES, Call


@triton.jit
def forward_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.maximum(tl.load(x_ptr + i, i < size, other=0.0).to(tl.float32), 0.0)
    tl.store(y_ptr + i, (x * x).to(y_ptr.dtype.element_ty), i < size)


@triton.jit
def backward_kernel(x_ptr, dy_ptr, dx_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.maximum(tl.load(x_ptr + i, i < size, other=0.0).to(tl.float32), 0.0)
    dy = tl.load(dy_ptr + i, i < size, other=0.0).to(tl.float32)
    tl.store(dx_ptr + i, (2.0 * x * dy).to(dx_ptr.dtype.element_ty), i < size)


def forward_call(x: torch.Tensor) -> Call:
    """Writes `y`; x is contiguous."""
    arguments = {"x_ptr": x, "y_ptr": torch.empty_like(x), "size": x.numel()}
    launch = LAUNCHES["relu2"]
    grid = (triton.cdiv(x.numel(), launch.tiles["BLOCK"]),)
    return Call(forward_kernel, grid, arguments, {}, launch)


def backward_call(x: torch.Tensor, dy: torch.Tensor) -> Call:
    """Writes `dx`; x and dy are contiguous."""
    arguments = {"x_ptr": x, "dy_ptr": dy, "dx_ptr": torch.empty_like(x), "size": x.numel()}
    launch = LAUNCHES["relu2"]
    grid = (triton.cdiv(x.numel(), launch.tiles["BLOCK"]),)
    return Call(backward_kernel, grid, arguments, {}, launch)


def relu2(x: torch.Tensor) -> torch.Tensor:
    """As reference.relu2."""
    return _ReLU2.apply(x)


def relu2_ffn(x: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """As reference.relu2_ffn."""
    return gemm(gemm(x, up_FD, relu2=True), down_DF)


class _ReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        flat = x.contiguous()
        ctx.save_for_backward(flat)
        return forward_call(flat).run()["y_ptr"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return backward_call(x, grads[0].contiguous()).run()["dx_ptr"]
