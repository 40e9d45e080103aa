"""RMS normalisation, alone or together with the residual addition before it."""

from __future__ import annotations

import torch

from ..choice import Choice, Needs, choose, needs_gradient
from . import reference

WIDEST, WIDEST_BACKWARD = 16384, 8192  # columns of a row, which a program holds in registers
NEEDS = Needs(backward=True)


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """`x / rms(x) * weight` over the last axis [..., D]."""
    if choice(x, weight).triton:
        from . import triton as kernel

        return kernel.rmsnorm(x, weight, eps)
    return reference.rmsnorm(x, weight, eps)


def add_rmsnorm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rmsnorm(x + residual), x + residual)`: the norm that follows a half layer."""
    if choice(x, residual, weight).triton:
        from . import triton as kernel

        return kernel.add_rmsnorm(x, residual, weight, eps=eps)
    return reference.add_rmsnorm(x, residual, weight, eps=eps)


def choice(*tensors: torch.Tensor) -> Choice:
    """Who runs for these tensors (x, the residual where there is one, weight)."""
    columns = tensors[0].shape[-1]
    obstacle = ""
    if columns > WIDEST:
        obstacle = f"rows of {columns} columns exceed the kernel's {WIDEST}"
    if columns > WIDEST_BACKWARD and needs_gradient(tensors):
        obstacle = f"rows of {columns} columns exceed the {WIDEST_BACKWARD} of its backward pass"
    if len({tensor.dtype for tensor in tensors[:-1]}) > 1:
        obstacle = "x and the residual are of different types"
    return choose("rmsnorm", tensors, NEEDS, obstacle=obstacle)


def why(*tensors: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(*tensors).reason
