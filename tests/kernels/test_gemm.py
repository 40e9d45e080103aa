"""The matrix product: kernel against reference at every batch, split or not, fp8 with scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzle.blocks.kernels.gemm import reference
from puzzle.blocks.kernels.gemm import triton as kernel
from puzzle.blocks.kernels.launch import Launch, run

FP8 = torch.float8_e4m3fn
SMALL = Launch({"BLOCK_F": 16, "BLOCK_T": 16, "BLOCK_D": 16}, warps=1)


@pytest.mark.parametrize(
    ("T", "D", "F", "relu2", "dtype"),
    [
        (1, 1, 1, False, torch.float32),
        (1, 1100, 70, False, torch.float32),
        (1, 4200, 70, True, torch.float16),
        (1, 4200, 70, False, torch.bfloat16),
        (63, 100, 65, True, torch.float32),
        (63, 100, 65, True, torch.bfloat16),
        (100, 64, 130, False, torch.float16),
        (130, 50, 9, True, torch.bfloat16),
    ],
)
def test_values(T, D, F, dtype, relu2, random, agree) -> None:
    x, weight = random(T, D, dtype=dtype), random(F, D, dtype=dtype, scale=D**-0.5)
    got = kernel.gemm(x, weight, relu2=relu2)
    agree(got, reference.gemm(x, weight, relu2=relu2), factor=2)


@pytest.mark.parametrize(("T", "D", "F"), [(1, 300, 70), (63, 100, 65), (70, 64, 40)])
@pytest.mark.parametrize("by_row", [False, True])
def test_fp8(T, D, F, by_row, random, agree) -> None:
    x, weight = random(T, D, dtype=FP8), random(F, D, dtype=FP8)
    scales = (random(T if by_row else 1).abs(), random(F if by_row else 1).abs())
    got = kernel.gemm(x, weight, scales=scales)
    agree(got, reference.gemm(x, weight, scales=scales))


def test_fp8_splits_scale_each_part(random, agree) -> None:
    x, weight = random(3, 2100, dtype=FP8), random(9, 2100, dtype=FP8)
    scales = (random(1).abs(), random(1).abs())
    assert len(kernel.gemm_calls(x, weight, relu2=True, scales=scales)) == 2
    got = kernel.gemm(x, weight, relu2=True, scales=scales)
    agree(got, reference.gemm(x, weight, relu2=True, scales=scales))


def test_leading_axes(random, agree) -> None:
    x, weight = random(2, 3, 20), random(5, 20)
    agree(kernel.gemm(x, weight), reference.gemm(x, weight), factor=3)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 150))
def test_any_size_in_small_tiles(T: int, F: int, D: int) -> None:
    generator = torch.Generator().manual_seed(T + 41 * F + 2911 * D)
    x, weight = torch.randn(T, D, generator=generator), torch.randn(F, D, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight = x.to(device), weight.to(device)
    got = run(kernel.gemm_calls(x, weight, relu2=False, scales=None, launch=SMALL))["y_ptr"]
    torch.testing.assert_close(got.view(T, F), x @ weight.T, rtol=1e-4, atol=1e-4)
