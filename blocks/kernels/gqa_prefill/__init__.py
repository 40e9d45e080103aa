"""Causal attention over a prompt, for any number of KV heads, with an optional window."""

from __future__ import annotations

import torch

from ..choice import Choice, Needs, choose
from . import reference

WIDEST = 256
MOST_HEADS = 65535
NEEDS = Needs(backward=False)


def gqa_prefill(
    q_BHTd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of the last T of S tokens; token i sees j with i - window < j <= i.

    H must be a multiple of K; `scale` (positive) is 1 / sqrt(d) unless given.
    """
    if choice(q_BHTd, k_BKSd, v_BKSd).triton:
        from . import triton as kernel

        return kernel.gqa_prefill(q_BHTd, k_BKSd, v_BKSd, window=window, scale=scale)
    return reference.gqa_prefill(q_BHTd, k_BKSd, v_BKSd, window=window, scale=scale)


def choice(q_BHTd: torch.Tensor, k_BKSd: torch.Tensor, v_BKSd: torch.Tensor) -> Choice:
    """Who runs for these tensors."""
    tensors = (q_BHTd, k_BKSd, v_BKSd)
    obstacle = ""
    if q_BHTd.shape[-1] > WIDEST:
        obstacle = f"heads of {q_BHTd.shape[-1]} channels exceed the kernel's {WIDEST}"
    if q_BHTd.shape[0] * q_BHTd.shape[1] > MOST_HEADS:
        obstacle = f"a batch of more than {MOST_HEADS} heads exceeds the kernel's grid"
    if len({tensor.dtype for tensor in tensors}) > 1:
        obstacle = "q, k and v are of different types"
    return choose("gqa_prefill", tensors, NEEDS, obstacle=obstacle)


def why(q_BHTd: torch.Tensor, k_BKSd: torch.Tensor, v_BKSd: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(q_BHTd, k_BKSd, v_BKSd).reason
