"""The gated activation in plain torch, in fp32, rounded once."""

from __future__ import annotations

import torch
from torch.nn import functional


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def swiglu_ffn(
    x: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor
) -> torch.Tensor:
    """`swiglu(x gate^T, x up^T) down^T`; hidden channels are rounded to x's type."""
    wide = x.float()
    hidden = functional.silu(wide @ gate_FD.float().T) * (wide @ up_FD.float().T)
    return (hidden.to(x.dtype).float() @ down_DF.float().T).to(x.dtype)
