"""Attention of one new token a sequence over its KV cache."""

from __future__ import annotations

import torch

from ..choice import FLOATS, FP8, Choice, Needs, choose
from . import reference

WIDEST = 256
NEEDS = Needs(backward=False, dtypes=(*FLOATS, FP8, torch.int32, torch.int64))


def gqa_decode(
    q_BHd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of the newest token, the last of the first `lengths` (>= 1) rows of its cache.

    The cache may be fp8 under bf16 or fp16 queries; its scales belong into `scale` (keys) and the
    output (values), since both are linear. With a window only the last `window` tokens are seen.
    """
    if choice(q_BHd, k_BKSd, v_BKSd, lengths_B).triton:
        from . import triton as kernel

        return kernel.gqa_decode(q_BHd, k_BKSd, v_BKSd, lengths_B, window=window, scale=scale)
    return reference.gqa_decode(q_BHd, k_BKSd, v_BKSd, lengths_B, window=window, scale=scale)


def choice(
    q_BHd: torch.Tensor, k_BKSd: torch.Tensor, v_BKSd: torch.Tensor, lengths_B: torch.Tensor
) -> Choice:
    """Who runs for these tensors."""
    obstacle = ""
    if q_BHd.shape[-1] > WIDEST:
        obstacle = f"heads of {q_BHd.shape[-1]} channels exceed the kernel's {WIDEST}"
    if k_BKSd.dtype != v_BKSd.dtype or k_BKSd.dtype not in (q_BHd.dtype, FP8):
        obstacle = "the cache is neither of q's type nor fp8"
    tensors = (q_BHd, k_BKSd, v_BKSd, lengths_B)
    return choose("gqa_decode", tensors, NEEDS, obstacle=obstacle)


def why(
    q_BHd: torch.Tensor, k_BKSd: torch.Tensor, v_BKSd: torch.Tensor, lengths_B: torch.Tensor
) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(q_BHd, k_BKSd, v_BKSd, lengths_B).reason
