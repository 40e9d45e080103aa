"""Rotary position embedding in plain torch, in fp32, rounded once."""

from __future__ import annotations

import torch


def rope(x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs (i, i + r/2) of the first r channels; the rest passes through."""
    r = cos_BTr.shape[-1]
    turned, rest = x_BHTd[..., :r].float(), x_BHTd[..., r:]
    left, right = turned.chunk(2, -1)
    swapped = torch.cat([-right, left], -1)
    cos, sin = cos_BTr.float().unsqueeze(1), sin_BTr.float().unsqueeze(1)
    return torch.cat([(turned * cos + swapped * sin).to(x_BHTd.dtype), rest], -1)
