"""The squared ReLU and its network: kernel against reference."""

from __future__ import annotations

import pytest
import torch

from puzzle.blocks.kernels.relu2 import reference
from puzzle.blocks.kernels.relu2 import triton as kernel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (63, 100), (2, 3, 1000)], ids=str)
def test_values_and_gradients(shape, dtype, random, agree, results) -> None:
    x, dy = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    got, want = (results(f, [x], [dy]) for f in (kernel.relu2, reference.relu2))
    for one, other in zip(got, want, strict=True):
        agree(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D", "F"), [(1, 64, 96), (63, 100, 40)])
def test_network(T, D, F, dtype, random, agree) -> None:
    x, up = random(T, D, dtype=dtype), random(F, D, dtype=dtype, scale=D**-0.5)
    down = random(D, F, dtype=dtype, scale=F**-0.5)
    agree(kernel.relu2_ffn(x, up, down), reference.relu2_ffn(x, up, down), factor=3)
