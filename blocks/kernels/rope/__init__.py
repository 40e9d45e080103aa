"""Rotary position embedding of queries or keys."""

from __future__ import annotations

import torch

from ..choice import Choice, Needs, choose
from . import reference

NEEDS = Needs(backward=True)


def rope(x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor) -> torch.Tensor:
    """Rotate the first r of the d channels of every head, as transformers' Llama does.

    `cos` and `sin` are [B, T, r] or [1, T, r] and take no gradient; channels past r pass through.
    """
    if choice(x_BHTd, cos_BTr, sin_BTr).triton:
        from . import triton as kernel

        return kernel.rope(x_BHTd, cos_BTr, sin_BTr)
    return reference.rope(x_BHTd, cos_BTr, sin_BTr)


def choice(x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor) -> Choice:
    """Who runs for these tensors."""
    angles = cos_BTr.requires_grad or sin_BTr.requires_grad
    obstacle = "gradients of the angles are asked for" if angles else ""
    return choose("rope", (x_BHTd, cos_BTr, sin_BTr), NEEDS, obstacle=obstacle)


def why(x_BHTd: torch.Tensor, cos_BTr: torch.Tensor, sin_BTr: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(x_BHTd, cos_BTr, sin_BTr).reason
