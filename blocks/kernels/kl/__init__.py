"""The forward KL divergence of a child's next-token distribution from the parent's."""

from __future__ import annotations

import torch

from ..choice import Choice, Needs, choose
from . import reference

NEEDS = Needs(backward=True)


def kl(parent_logits: torch.Tensor, child_logits: torch.Tensor) -> torch.Tensor:
    """`KL(parent || child)` of logits [..., V], in natural units, fp32 [...].

    The gradient goes to the child. A token the parent's logits exclude (-inf) counts nothing.
    """
    if choice(parent_logits, child_logits).triton:
        from . import triton as kernel

        return kernel.kl(parent_logits, child_logits)
    return reference.kl(parent_logits, child_logits)


def choice(parent_logits: torch.Tensor, child_logits: torch.Tensor) -> Choice:
    """Who runs for these tensors."""
    obstacle = "a gradient of the parent is asked for" if parent_logits.requires_grad else ""
    return choose("kl", (parent_logits, child_logits), NEEDS, obstacle=obstacle)


def why(parent_logits: torch.Tensor, child_logits: torch.Tensor) -> str:
    """Who runs for these tensors, and why, in one sentence."""
    return choice(parent_logits, child_logits).reason
