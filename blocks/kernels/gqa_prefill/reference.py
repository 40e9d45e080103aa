"""Causal grouped-query attention in plain torch: all scores in fp32, one softmax."""

from __future__ import annotations

import torch


def gqa_prefill(
    q_BHTd: torch.Tensor,
    k_BKSd: torch.Tensor,
    v_BKSd: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of the last T of S tokens; token i sees j with i - window < j <= i."""
    H, T, d = q_BHTd.shape[1:]
    K, S = k_BKSd.shape[1:3]
    k, v = (x.float().repeat_interleave(H // K, dim=1) for x in (k_BKSd, v_BKSd))
    scores = q_BHTd.float() @ k.mT * (d**-0.5 if scale is None else scale)
    i = torch.arange(S - T, S, device=q_BHTd.device)[:, None]
    j = torch.arange(S, device=q_BHTd.device)
    seen = (j <= i) & (j > i - (window or S))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).to(q_BHTd.dtype)
