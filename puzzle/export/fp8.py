"""What float8 serving would make of a child, computed in wider numbers.

Engines quantize at load: vLLM's `--quantization fp8_per_channel` rounds every matrix inside the
layers to float8 (e4m3) with one scale a row, and what enters it with one scale a token. Products
are summed in wider numbers, so rounding the factors alone gives the same sums up to their order.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from puzzle.export.modeling_puzzle import PuzzleForCausalLM

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def fake_quantized(model: PuzzleForCausalLM) -> PuzzleForCausalLM:
    """A copy whose linear maps inside the layers compute as in float8; the head stays.

    Experts of a mixture stay too: they are no linear maps of their own.
    """
    quantized = copy.deepcopy(model)
    for module in quantized.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(rounded(module.weight), requires_grad=False)
            module.register_forward_pre_hook(_round_input)
    return quantized


def _round_input(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (rounded(inputs[0]), *inputs[1:])


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows [..., N] as float8 holds them, each with the scale that takes its largest to 448."""
    wide = rows.float()
    scale = (wide.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp_min(torch.finfo().tiny)
    return ((wide / scale).to(torch.float8_e4m3fn).float() * scale).to(rows.dtype)
