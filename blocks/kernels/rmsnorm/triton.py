"""RMS normalisation in Triton: one program a row forwards, a few hundred programs backwards.

Legend: N rows, D columns, P programs of the backward pass.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable
from triton import language as tl

from ..launch import SMS, Call, row_launch, rows
from . import WIDEST_BACKWARD


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, total_ptr, y_ptr, rstd_ptr,
    x_stride, residual_stride, eps, D,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    x = tl.load(x_ptr + row * x_stride + columns, inside, other=0.0).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_stride + columns, inside, other=0.0)
        rounded = (x + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * D + columns, rounded, inside)
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    normed = (x * rstd).to(x_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + columns, (normed * weight).to(y_ptr.dtype.element_ty), inside)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def backward_kernel(
    x_ptr, weight_ptr, rstd_ptr, dy_ptr, dtotal_ptr, dx_ptr, dweight_ptr,
    x_stride, N, D,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    for n in range(program, N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        x = tl.load(x_ptr + row * x_stride + columns, inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + columns, inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        normed = x * rstd
        dweight += dy * normed
        dnormed = dy * weight
        dx = rstd * (dnormed - normed * (tl.sum(normed * dnormed, 0) / D))
        if ADD:
            dx += tl.load(dtotal_ptr + row * D + columns, inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * D + columns, dx.to(dx_ptr.dtype.element_ty), inside)
    tl.store(dweight_ptr + program * D + columns, dweight, inside)


def forward_call(
    x_ND: torch.Tensor, residual_ND: torch.Tensor | None, weight: torch.Tensor, *, eps: float
) -> Call:
    """Writes `y`, `rstd` (fp32, one a row) and, with a residual, `total`."""
    N, D = x_ND.shape
    add = residual_ND is not None
    arguments = {
        "x_ptr": x_ND,
        "residual_ptr": residual_ND,
        "weight_ptr": weight,
        "total_ptr": x_ND.new_empty(N, D) if add else None,
        "y_ptr": x_ND.new_empty(N, D, dtype=torch.promote_types(x_ND.dtype, weight.dtype)),
        "rstd_ptr": x_ND.new_empty(N, dtype=torch.float32),
        "x_stride": x_ND.stride(0),
        "residual_stride": 0 if residual_ND is None else residual_ND.stride(0),
        "eps": eps,
        "D": D,
    }
    return Call(forward_kernel, (N,), arguments, {"ADD": add}, row_launch("rmsnorm", D))


def backward_call(
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dy_ND: torch.Tensor,
    dtotal_ND: torch.Tensor | None,
) -> Call:
    """Writes `dx` and `dweight` [P, D], to be summed over P; `saved` is x, weight, rstd.

    Raises:
        ValueError: for rows whose gradients do not fit the registers of a multiprocessor.
    """
    x_ND, weight, rstd = saved
    N, D = x_ND.shape
    if D > WIDEST_BACKWARD:
        raise ValueError(f"rmsnorm trains rows of at most {WIDEST_BACKWARD} columns, not {D}")
    programs = min(N, 2 * SMS)
    arguments = {
        "x_ptr": x_ND,
        "weight_ptr": weight,
        "rstd_ptr": rstd,
        "dy_ptr": dy_ND,
        "dtotal_ptr": dtotal_ND,
        "dx_ptr": x_ND.new_empty(N, D),
        "dweight_ptr": x_ND.new_empty(programs, D, dtype=torch.float32),
        "x_stride": x_ND.stride(0),
        "N": N,
        "D": D,
    }
    constants = {"ADD": dtotal_ND is not None}
    return Call(backward_kernel, (programs,), arguments, constants, row_launch("rmsnorm", D))


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As reference.rmsnorm."""
    return _RMSNorm.apply(x, weight, eps)


def add_rmsnorm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.add_rmsnorm."""
    return _AddRMSNorm.apply(x, residual, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x_ND = rows(x)
        done = forward_call(x_ND, None, weight.contiguous(), eps=eps).run()
        ctx.save_for_backward(x_ND, weight.contiguous(), done["rstd_ptr"])
        return done["y_ptr"].view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy,) = grads
        dx, dweight = _gradients(ctx.saved_tensors, dy, None)
        return dx, dweight, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        done = forward_call(rows(x), rows(residual), weight.contiguous(), eps=eps).run()
        total = done["total_ptr"]
        ctx.save_for_backward(total, weight.contiguous(), done["rstd_ptr"])
        return done["y_ptr"].view(x.shape), total.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dy, dtotal = grads
        dx, dweight = _gradients(ctx.saved_tensors, dy, dtotal)
        return dx, dx, dweight, None


def _gradients(
    saved: Any, dy: torch.Tensor, dtotal: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    D = dy.shape[-1]
    flat = None if dtotal is None else dtotal.contiguous().view(-1, D)
    done = backward_call(saved, dy.contiguous().view(-1, D), flat).run()
    dweight = done["dweight_ptr"].sum(0).to(saved[1].dtype)
    return done["dx_ptr"].view(dy.shape), dweight
