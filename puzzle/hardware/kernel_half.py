"""Halves of Llama layers on our own kernels: the `triton` column of `puzzle profile`.

The same numbers as `PuzzleLayer` gives, by `puzzle.blocks.kernels`: query, key and value in one
product, the cache written in place, decode over a cache that is as long as its context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from puzzle.blocks.kernels.gemm import gemm
from puzzle.blocks.kernels.gqa_decode import gqa_decode
from puzzle.blocks.kernels.gqa_prefill import gqa_prefill
from puzzle.blocks.kernels.rmsnorm import rmsnorm
from puzzle.blocks.kernels.rope import rope
from puzzle.blocks.kernels.swiglu import swiglu_ffn
from puzzle.export.modeling_puzzle import LinearAttention, LinearMLP, PuzzleLayer


@dataclass(frozen=True)
class Past:
    """What a pass of attention needs of the tokens before: angles [1, T, d] and a cache.

    keys and values are [B, K, S, d], S counting this pass's T tokens, whose rows it fills.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class KernelHalf:
    """One half of a layer, its weights as the kernels want them."""

    def __init__(self, layer: PuzzleLayer) -> None:
        self.window = layer.window
        self.attention: Any = layer.self_attn  # of transformers' classes
        self.mlp: Any = layer.mlp
        self.norm: Any = layer.input_layernorm or layer.post_attention_layernorm
        if self.attention is not None and not isinstance(self.attention, LinearAttention):
            own: Any = self.attention
            parts = [own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]
            self.qkv_FD = torch.cat(parts)

    def __call__(self, stream_BTD: torch.Tensor, past: Past) -> torch.Tensor:
        """The residual stream after the half."""
        normed = rmsnorm(stream_BTD, self.norm.weight, self.norm.variance_epsilon)
        if self.attention is not None:
            if isinstance(self.attention, LinearAttention):
                return stream_BTD + gemm(normed, self.attention.linear_attn.weight)
            return stream_BTD + self._attend(normed, past)
        if isinstance(self.mlp, LinearMLP):
            return stream_BTD + gemm(normed, self.mlp.linear_mlp.weight)
        gate, up, down = self.mlp.gate_proj, self.mlp.up_proj, self.mlp.down_proj
        return stream_BTD + swiglu_ffn(normed, gate.weight, up.weight, down.weight)

    def _attend(self, normed_BTD: torch.Tensor, past: Past) -> torch.Tensor:
        batch, tokens, _ = normed_BTD.shape
        kv_heads, length, head_dim = past.keys.shape[1:]
        query_size = self.qkv_FD.shape[0] - 2 * kv_heads * head_dim
        sizes = [query_size, kv_heads * head_dim, kv_heads * head_dim]
        parts = gemm(normed_BTD, self.qkv_FD).split(sizes, dim=-1)
        q, k, v = (
            part.view(batch, tokens, -1, head_dim).transpose(1, 2).contiguous() for part in parts
        )
        past.keys[:, :, length - tokens :] = rope(k, past.cos, past.sin)
        past.values[:, :, length - tokens :] = v
        q = rope(q, past.cos, past.sin)
        if tokens > 1:
            found = gqa_prefill(q, past.keys, past.values, window=self.window)
        else:
            lengths = torch.full((batch,), length, dtype=torch.int32, device=q.device)
            found = gqa_decode(q[:, :, 0], past.keys, past.values, lengths, window=self.window)
            found = found.unsqueeze(2)
        return gemm(found.transpose(1, 2).reshape(batch, tokens, -1), self.attention.o_proj.weight)
