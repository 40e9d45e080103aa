"""Rotary embedding: kernel against reference, whole and partial, and its inverse."""

from __future__ import annotations

import pytest
import torch

from puzzle.blocks.kernels.rope import reference
from puzzle.blocks.kernels.rope import triton as kernel


@pytest.mark.parametrize(
    ("B", "H", "T", "d", "r", "dtype"),
    [
        (1, 1, 1, 2, 2, torch.float32),
        (1, 3, 63, 24, 24, torch.float32),
        (2, 17, 5, 64, 20, torch.float16),
        (1, 2, 7, 24, 24, torch.bfloat16),
    ],
)
def test_values_and_gradients(B, H, T, d, r, dtype, random, agree, results) -> None:
    x, dy = random(B, H, T, d, dtype=dtype), random(B, H, T, d, dtype=dtype)
    cos, sin = random(1, T, r, dtype=dtype), random(1, T, r, dtype=dtype)  # any, not only angles
    got = results(lambda x: kernel.rope(x, cos, sin), [x], [dy])
    want = results(lambda x: reference.rope(x, cos, sin), [x], [dy])
    for one, other in zip(got, want, strict=True):
        agree(one, other)


def test_angles_of_every_sequence_and_tokens_before_heads(random, agree) -> None:
    x = random(2, 7, 3, 8).transpose(1, 2)
    cos, sin = random(2, 7, 8), random(2, 7, 8)
    got = kernel.rope(x, cos, sin)
    agree(got, reference.rope(x, cos, sin))
    assert got.transpose(1, 2).is_contiguous()


def test_turning_keeps_lengths_and_turns_back(random, agree) -> None:
    x, angle = random(1, 2, 9, 16), random(1, 9, 8).repeat(1, 1, 2)
    turned = kernel.rope(x, angle.cos(), angle.sin())
    agree(turned.norm(dim=-1), x.norm(dim=-1))
    agree(kernel.rope(turned, angle.cos(), -angle.sin()), x.contiguous())
