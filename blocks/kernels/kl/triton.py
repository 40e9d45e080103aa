"""Forward KL in Triton: one program a row walks the vocabulary once, keeping four numbers.

Legend: N rows, V vocabulary.
Both softmaxes are kept online as (peak, total), with `gap = sum_v e^(z - peak) ((z - peak) -
(c - peak_c))` between them; then `KL = gap / total - log total + log total_c`. Measuring each
logit from its own peak keeps the terms of the order of the entropy, so a KL of 1e-6 survives fp32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable
from triton import language as tl

from ..launch import LAUNCHES, Call, rows


@triton.jit
def forward_kernel(
    parent_ptr, child_ptr, kl_ptr, parent_log_ptr, child_log_ptr, parent_stride, child_stride, V,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    parent_ptr += row * parent_stride
    child_ptr += row * child_stride
    peak = -1e30  # finite: the first chunk may hold no token at all
    peak_c = -1e30
    total = 0.0
    total_c = 0.0
    gap = 0.0
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        z = tl.load(parent_ptr + v, v < V, other=-float("inf")).to(tl.float32)
        c = tl.load(child_ptr + v, v < V, other=-float("inf")).to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(z, 0))
        new_peak_c = tl.maximum(peak_c, tl.max(c, 0))
        fade = tl.exp(peak - new_peak)
        gap = fade * (gap + total * ((peak - new_peak) - (peak_c - new_peak_c)))
        weight = tl.exp(z - new_peak)
        some = weight > 0  # a token without weight counts nothing, even where both exclude it
        apart = tl.where(some, z - new_peak, 0.0) - tl.where(some, c - new_peak_c, 0.0)
        gap += tl.sum(weight * apart, 0)
        total = total * fade + tl.sum(weight, 0)
        total_c = total_c * tl.exp(peak_c - new_peak_c) + tl.sum(tl.exp(c - new_peak_c), 0)
        peak = new_peak
        peak_c = new_peak_c
    tl.store(kl_ptr + row, gap / total - tl.log(total) + tl.log(total_c))
    tl.store(parent_log_ptr + row, peak + tl.log(total))
    tl.store(child_log_ptr + row, peak_c + tl.log(total_c))


@triton.jit
def backward_kernel(
    parent_ptr, child_ptr, parent_log_ptr, child_log_ptr, dkl_ptr, dchild_ptr,
    parent_stride, child_stride, V,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(parent_ptr + row * parent_stride + v, v < V, other=-float("inf")).to(tl.float32)
    c = tl.load(child_ptr + row * child_stride + v, v < V, other=-float("inf")).to(tl.float32)
    p = tl.exp(z - tl.load(parent_log_ptr + row))
    q = tl.exp(c - tl.load(child_log_ptr + row))
    dchild = tl.load(dkl_ptr + row) * (q - p)
    tl.store(dchild_ptr + row * V + v, dchild.to(dchild_ptr.dtype.element_ty), v < V)


def forward_call(parent_NV: torch.Tensor, child_NV: torch.Tensor) -> Call:
    """Writes `kl`, and both log-sum-exps for the backward pass, fp32 [N]."""
    N, V = parent_NV.shape
    arguments = {
        "parent_ptr": parent_NV,
        "child_ptr": child_NV,
        "kl_ptr": child_NV.new_empty(N, dtype=torch.float32),
        "parent_log_ptr": child_NV.new_empty(N, dtype=torch.float32),
        "child_log_ptr": child_NV.new_empty(N, dtype=torch.float32),
        "parent_stride": parent_NV.stride(0),
        "child_stride": child_NV.stride(0),
        "V": V,
    }
    return Call(forward_kernel, (N,), arguments, {}, LAUNCHES["kl"])


def backward_call(
    logits: tuple[torch.Tensor, torch.Tensor],
    logs: tuple[torch.Tensor, torch.Tensor],
    dkl_N: torch.Tensor,
) -> Call:
    """Writes `dchild` [N, V]; `logits` and `logs` are the parent's and the child's."""
    parent_NV, child_NV = logits
    N, V = child_NV.shape
    arguments = {
        "parent_ptr": parent_NV,
        "child_ptr": child_NV,
        "parent_log_ptr": logs[0],
        "child_log_ptr": logs[1],
        "dkl_ptr": dkl_N,
        "dchild_ptr": child_NV.new_empty(N, V),
        "parent_stride": parent_NV.stride(0),
        "child_stride": child_NV.stride(0),
        "V": V,
    }
    launch = LAUNCHES["kl"]
    grid = (N, triton.cdiv(V, launch.tiles["BLOCK"]))
    return Call(backward_kernel, grid, arguments, {}, launch)


def kl(parent_logits: torch.Tensor, child_logits: torch.Tensor) -> torch.Tensor:
    """As reference.kl; no gradient of the parent."""
    return _KL.apply(parent_logits, child_logits)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        logits = rows(parent), rows(child)
        done = forward_call(*logits).run()
        ctx.save_for_backward(*logits, done["parent_log_ptr"], done["child_log_ptr"])
        return done["kl_ptr"].view(child.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        parent, child, parent_log, child_log = ctx.saved_tensors
        dkl = grads[0].float().contiguous().view(-1)
        done = backward_call((parent, child), (parent_log, child_log), dkl).run()
        return None, done["dchild_ptr"].view(*grads[0].shape, child.shape[-1])
