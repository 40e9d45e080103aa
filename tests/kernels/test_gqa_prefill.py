"""Prefill attention: kernel against reference at any head ratio, length and window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzle.blocks.kernels.gqa_prefill import reference
from puzzle.blocks.kernels.gqa_prefill import triton as kernel
from puzzle.blocks.kernels.launch import Launch

SMALL = Launch({"BLOCK_T": 16, "BLOCK_S": 16}, warps=1)


@pytest.mark.parametrize(
    ("B", "H", "K", "T", "d", "dtype"),
    [
        (2, 1, 1, 1, 16, torch.float32),
        (1, 3, 1, 100, 24, torch.float32),
        (1, 6, 2, 63, 24, torch.bfloat16),
        (1, 2, 1, 130, 64, torch.float16),
        (1, 2, 1, 130, 64, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("window", [None, 50])
def test_values(B, H, K, T, d, window, dtype, random, agree) -> None:
    q = random(B, H, T, d, dtype=dtype)
    k, v = random(B, K, T, d, dtype=dtype), random(B, K, T, d, dtype=dtype)
    got = kernel.gqa_prefill(q, k, v, window=window)
    agree(got, reference.gqa_prefill(q, k, v, window=window), factor=2)


def test_tokens_before_heads_and_own_scale(random, agree) -> None:
    q, k, v = (random(1, 20, heads, 16).transpose(1, 2) for heads in (4, 2, 2))
    got = kernel.gqa_prefill(q, k, v, scale=0.7)
    agree(got, reference.gqa_prefill(q, k, v, scale=0.7))
    assert got.transpose(1, 2).is_contiguous()


def test_large_scores_do_not_overflow(random, agree) -> None:
    q, k, v = (random(1, 1, 40, 16, scale=scale) for scale in (60, 60, 1))
    agree(kernel.gqa_prefill(q, k, v), reference.gqa_prefill(q, k, v), factor=10)


@settings(max_examples=10, deadline=None)
@given(
    T=st.integers(1, 70),
    past=st.integers(0, 70),
    window=st.none() | st.integers(1, 150),
    block_s=st.sampled_from([16, 32]),
)
def test_any_length_past_and_window_in_small_tiles(T, past, window, block_s) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(T + past)
    q = torch.randn(1, 2, T, 16, device=device)
    k, v = torch.randn(2, 1, 1, T + past, 16, device=device)
    launch = Launch({"BLOCK_T": 16, "BLOCK_S": block_s}, warps=1)
    call = kernel.prefill_call(q, k, v, window=window, scale=None, launch=launch)
    want = reference.gqa_prefill(q, k, v, window=window)
    torch.testing.assert_close(call.run()["o_ptr"], want, rtol=1e-4, atol=1e-5)


def test_a_token_ignores_what_follows_it(random) -> None:
    q, k, v = random(1, 2, 50, 16), random(1, 2, 50, 16), random(1, 2, 50, 16)
    before = kernel.gqa_prefill(q, k, v)
    k[:, :, 30:] = 9.0
    v[:, :, 30:] = 9.0
    after = kernel.gqa_prefill(q, k, v)
    assert torch.equal(before[:, :, :30], after[:, :, :30])
    assert not torch.equal(before[:, :, 30:], after[:, :, 30:])
