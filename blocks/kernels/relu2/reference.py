"""The squared ReLU in plain torch, in fp32, rounded once."""

from __future__ import annotations

import torch


def relu2(x: torch.Tensor) -> torch.Tensor:
    """`relu(x)^2`."""
    return x.float().relu().square().to(x.dtype)


def relu2_ffn(x: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """`relu2(x up^T) down^T`; hidden channels are rounded to x's type."""
    hidden = (x.float() @ up_FD.float().T).relu().square().to(x.dtype)
    return (hidden.float() @ down_DF.float().T).to(x.dtype)
