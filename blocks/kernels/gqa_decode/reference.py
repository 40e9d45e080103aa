"""Decode attention in plain torch: all scores in fp32, one softmax."""

from __future__ import annotations

import torch


def gqa_decode(
    q_BHd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention over the first `lengths` rows of each cache, or the last `window` of those."""
    H, d = q_BHd.shape[1:]
    K, S = k_BKSd.shape[1:3]
    k, v = (x.float().repeat_interleave(H // K, dim=1) for x in (k_BKSd, v_BKSd))
    scores = torch.einsum("bhd,bhsd->bhs", q_BHd.float(), k)
    scores = scores * (d**-0.5 if scale is None else scale)
    key = torch.arange(S, device=q_BHd.device)
    length = lengths_B[:, None]
    seen = (key < length) & (key >= length - (window or S))
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    v = v.masked_fill(~seen[:, None, :, None], 0.0)  # rows not written yet may hold anything
    return torch.einsum("bhs,bhsd->bhd", weights, v).to(q_BHd.dtype)
