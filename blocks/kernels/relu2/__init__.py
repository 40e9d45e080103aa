"""The squared ReLU of ungated feed-forward networks (Nemotron), and the network around it."""

from __future__ import annotations

import torch

from ..choice import Choice, Needs, choose
from ..gemm import misaligned
from . import reference

NEEDS = Needs(backward=True)
FFN_NEEDS = Needs(backward=False)


def relu2(x: torch.Tensor) -> torch.Tensor:
    """`relu(x)^2`, elementwise."""
    if choice(x).triton:
        from . import triton as kernel

        return kernel.relu2(x)
    return reference.relu2(x)


def relu2_ffn(x: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """`relu2(x up^T) down^T`, the activation fused into the first product."""
    if choice(x, up_FD, down_DF).triton:
        from . import triton as kernel

        return kernel.relu2_ffn(x, up_FD, down_DF)
    return reference.relu2_ffn(x, up_FD, down_DF)


def choice(*tensors: torch.Tensor) -> Choice:
    """Who runs for these tensors: x, or x and the weights up and down."""
    mixed = len({tensor.dtype for tensor in tensors}) > 1
    obstacle = "its tensors are of different types" if mixed else ""
    if len(tensors) == 1:
        return choose("relu2", tensors, NEEDS, obstacle=obstacle)
    rows = obstacle or misaligned(tensors[0].shape[-1]) or misaligned(tensors[-1].shape[-1])
    return choose("relu2", tensors, FFN_NEEDS, obstacle=rows)


def why(*tensors: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(*tensors).reason
