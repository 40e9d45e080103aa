"""The matrix product of a linear layer, with fp8 scales and a fused squared ReLU."""

from __future__ import annotations

import torch

from ..choice import FLOATS, FP8, Choice, Needs, choose
from . import reference

NEEDS = Needs(backward=False, dtypes=(*FLOATS, FP8))
ALIGNMENT = 16
Scales = tuple[torch.Tensor, torch.Tensor]


def gemm(
    x: torch.Tensor, weight_FD: torch.Tensor, *, relu2: bool = False, scales: Scales | None = None
) -> torch.Tensor:
    """`x @ weight.T` for x [..., D]: [..., F], then `relu(.)^2` with `relu2`.

    fp8 operands (e4m3) give bf16; `scales` are fp32 factors of x's rows and of weight's rows, or
    one of each.
    """
    if choice(x, weight_FD).triton:
        from . import triton as kernel

        return kernel.gemm(x, weight_FD, relu2=relu2, scales=scales)
    return reference.gemm(x, weight_FD, relu2=relu2, scales=scales)


def choice(x: torch.Tensor, weight_FD: torch.Tensor) -> Choice:
    """Who runs for these tensors."""
    obstacle = misaligned(x.shape[-1])
    if x.dtype != weight_FD.dtype:
        obstacle = "x and the weight are of different types"
    return choose("gemm", (x, weight_FD), NEEDS, obstacle=obstacle)


def misaligned(D: int) -> str:
    """What keeps the kernel from reading rows of D channels in wide, asynchronous copies."""
    return f"rows of {D} channels are not a multiple of {ALIGNMENT}" if D % ALIGNMENT else ""


def why(x: torch.Tensor, weight_FD: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(x, weight_FD).reason
