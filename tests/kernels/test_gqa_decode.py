"""Decode attention: kernel against reference at any split, length, window and cache type."""

from __future__ import annotations

import pytest
import torch

from puzzle.blocks.kernels.gqa_decode import reference
from puzzle.blocks.kernels.gqa_decode import triton as kernel
from puzzle.blocks.kernels.gqa_prefill import reference as prefill
from puzzle.blocks.kernels.launch import run


def _lengths(lengths: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(lengths, device=like.device)


@pytest.mark.parametrize(
    ("H", "K", "d", "dtype"),
    [
        (1, 1, 16, torch.float32),
        (6, 2, 24, torch.float32),
        (6, 2, 24, torch.bfloat16),
        (20, 1, 64, torch.float16),
    ],
)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("window", [None, 33])
def test_values(H, K, d, splits, window, dtype, random, agree) -> None:
    q = random(3, H, d, dtype=dtype)
    k, v = random(3, K, 100, d, dtype=dtype), random(3, K, 100, d, dtype=dtype)
    lengths = _lengths([100, 1, 63], q)
    calls = kernel.decode_calls(q, (k, v), lengths, window=window, scale=None, splits=splits)
    assert len(calls) == min(splits, 2)
    want = reference.gqa_decode(q, k, v, lengths, window=window)
    agree(run(calls)["o_ptr"].view(q.shape), want, factor=2)


def test_rows_not_written_yet_are_not_read(random, agree) -> None:
    q, k, v = random(2, 4, 16), random(2, 2, 40, 16), random(2, 2, 40, 16)
    lengths = _lengths([17, 40], q)
    k[0, :, 17:] = torch.nan
    v[0, :, 17:] = torch.nan
    got = kernel.gqa_decode(q, k, v, lengths)
    agree(got, reference.gqa_decode(q, k.nan_to_num(), v.nan_to_num(), lengths))
    agree(got, reference.gqa_decode(q, k, v, lengths))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fp8_cache(dtype, random, agree) -> None:
    q = random(2, 8, 32, dtype=dtype)
    k, v = (random(2, 2, 70, 32, dtype=torch.float8_e4m3fn) for _ in range(2))
    lengths = _lengths([70, 9], q)
    got = kernel.gqa_decode(q, k, v, lengths, scale=0.2)
    agree(got, reference.gqa_decode(q, k, v, lengths, scale=0.2), factor=2)


def test_more_splits_than_tokens_and_the_last_row_of_prefill(random, agree) -> None:
    q, k, v = random(1, 4, 30, 16), random(1, 2, 30, 16), random(1, 2, 30, 16)
    lengths = _lengths([30], q)
    calls = kernel.decode_calls(q[:, :, -1], (k, v), lengths, window=9, scale=None, splits=7)
    want = prefill.gqa_prefill(q, k, v, window=9)[:, :, -1]
    agree(run(calls)["o_ptr"].view(want.shape), want)


def test_splits_fill_the_device_and_stay_long() -> None:
    assert kernel.split_count(1, 8, 8192) == 32
    assert kernel.split_count(1, 1, 128) == 1
    assert kernel.split_count(256, 8, 8192) == 1
    assert kernel.split_count(1, 1, 1_000_000) == 64
