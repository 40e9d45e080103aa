"""Forward KL in plain torch: two log-softmaxes in fp32."""

from __future__ import annotations

import torch


def kl(parent_logits: torch.Tensor, child_logits: torch.Tensor) -> torch.Tensor:
    """`sum_v p_v (log p_v - log c_v)` over the last axis."""
    log_p = parent_logits.float().log_softmax(-1)
    log_c = child_logits.float().log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_c), 0.0).sum(-1)
