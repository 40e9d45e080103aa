"""The matrix product of a linear layer in plain torch, accumulated in fp32."""

from __future__ import annotations

import torch


def gemm(
    x: torch.Tensor,
    weight_FD: torch.Tensor,
    *,
    relu2: bool = False,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """`x @ weight.T`, scaled by row, then `relu(.)^2` with `relu2`; fp8 operands give bf16."""
    y = x.float() @ weight_FD.float().T
    if scales is not None:
        x_scale, weight_scale = scales
        y = y * x_scale.reshape(*x_scale.shape[: x.dim() - 1], 1) * weight_scale
    if relu2:
        y = y.relu().square()
    return y.to(torch.bfloat16 if x.dtype == torch.float8_e4m3fn else x.dtype)
