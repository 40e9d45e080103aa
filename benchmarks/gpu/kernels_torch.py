"""What the kernels take, and the same operations by torch and the libraries it calls.

Sizes: B batch, T tokens, D hidden, F intermediate, K kv heads, S tokens in the cache, d of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from puzzle.blocks.kernels import gemm

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
Function = Callable[..., Any]


def normal(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
    """Normal random numbers."""
    return (torch.randn(shape) * scale).to(dtype)


def fp8_inputs(T: int, D: int, F: int) -> tuple[torch.Tensor, ...]:
    """Of a product: its factors and their scales."""
    one = torch.ones(1)
    return normal(T, D, dtype=FP8), normal(F, D, dtype=FP8), 0.5 * one, D**-0.5 * one


def ffn_inputs(T: int, D: int, F: int, *, weights: int) -> tuple[torch.Tensor, ...]:
    """Tokens, then the weights of an FFN, the one back to D last."""
    first = [normal(F, D, scale=D**-0.5) for _ in range(weights - 1)]
    return normal(T, D), *first, normal(D, F, scale=F**-0.5)


def decode_inputs(B: int, K: int, S: int, kind: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries of 32 heads, a full cache of this type, and its lengths."""
    cache = [normal(B, K, S, 128).to(kind) for _ in range(2)]
    return normal(B, 32, 128), *cache, torch.full((B,), S, dtype=torch.int32)


def angles(T: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines to rotate by."""
    angle = torch.rand(1, T, d // 2).mul(6.28).repeat(1, 1, 2)
    return angle.cos().to(BF16), angle.sin().to(BF16)


def scaled_mm(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The fp8 product of cuBLAS."""
    return torch._scaled_mm(x, w.T, a, b, out_dtype=BF16, use_fast_accum=True)


def fp8_reference(
    x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The fp8 product of plain torch."""
    return gemm.reference.gemm(x, w, scales=(a, b))


def swiglu_ffn(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """The gated FFN."""
    hidden = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
    return functional.linear(hidden, down)


def relu2_ffn(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The FFN of squared ReLU."""
    return functional.linear(functional.linear(x, up).relu().square(), down)


def attention(*, causal: bool) -> dict[str, Function]:
    """By backend: causal attention, or that of one query a sequence."""
    return {name: _sdpa(backend, causal=causal) for name, backend in BACKENDS.items()}


def _sdpa(backend: SDPBackend, *, causal: bool) -> Function:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        q = q if causal else q.unsqueeze(2)  # one query a sequence
        with sdpa_kernel(backend):
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return o if causal else o.squeeze(2)

    return attend


def with_gradient(divergence: Function) -> Function:
    """The gradient of a divergence from the parent with respect to the child."""

    def compute(parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        leaf = child.detach().requires_grad_()
        return torch.autograd.grad(divergence(parent, leaf).sum(), leaf)[0]

    return compute
