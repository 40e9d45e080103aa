"""The gated activation `silu(gate) * up`, and the feed-forward network around it."""

from __future__ import annotations

import torch

from ..choice import FLOATS, Choice, Needs, choose
from ..gemm import misaligned
from . import reference

NEEDS = Needs(backward=True)
FFN_NEEDS = Needs(backward=False, dtypes=FLOATS)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` [..., F]; both may be halves of one tensor [..., 2 F]."""
    if choice(gate, up).triton:
        from . import triton as kernel

        return kernel.swiglu(gate, up)
    return reference.swiglu(gate, up)


def swiglu_ffn(
    x: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """`swiglu(x gate^T, x up^T) down^T`, the activation fused into the first product."""
    if choice(x, gate_FD, up_FD, down_DF).triton:
        from . import triton as kernel

        return kernel.swiglu_ffn(x, gate_FD, up_FD, down_DF)
    return reference.swiglu_ffn(x, gate_FD, up_FD, down_DF)


def choice(*tensors: torch.Tensor) -> Choice:
    """Who runs for these tensors: gate and up, or x and the weights gate, up, down."""
    mixed = len({tensor.dtype for tensor in tensors}) > 1
    obstacle = "its tensors are of different types" if mixed else ""
    if len(tensors) == 2:
        return choose("swiglu", tensors, NEEDS, obstacle=obstacle)
    rows = obstacle or misaligned(tensors[0].shape[-1]) or misaligned(tensors[-1].shape[-1])
    return choose("swiglu", tensors, FFN_NEEDS, obstacle=rows)


def why(*tensors: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(*tensors).reason
