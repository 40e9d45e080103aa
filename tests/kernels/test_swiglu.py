"""The gated activation and its network: kernel against reference."""

from __future__ import annotations

import pytest
import torch

from puzzle.blocks.kernels.launch import Launch
from puzzle.blocks.kernels.swiglu import reference
from puzzle.blocks.kernels.swiglu import triton as kernel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = Launch({"BLOCK_F": 16, "BLOCK_T": 16, "BLOCK_D": 16}, warps=1)


@pytest.mark.parametrize(
    ("N", "F", "dtype"),
    [
        (1, 1, torch.float32),
        (63, 100, torch.float32),
        (2, 1030, torch.float16),
        (2, 1030, torch.bfloat16),
    ],
)
def test_values_and_gradients(N, F, dtype, random, agree, results) -> None:
    inputs = [random(N, F, dtype=dtype, scale=4), random(N, F, dtype=dtype)]
    dy = random(N, F, dtype=dtype)
    got, want = (results(f, inputs, [dy]) for f in (kernel.swiglu, reference.swiglu))
    for one, other in zip(got, want, strict=True):
        agree(one, other)


def test_halves_of_one_tensor(random, agree) -> None:
    gate, up = random(5, 14).chunk(2, -1)  # rows further apart than they are long
    agree(kernel.swiglu(gate, up), reference.swiglu(gate, up))
    agree(kernel.swiglu(gate, up.contiguous()), reference.swiglu(gate, up))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "D", "F"), [(1, 64, 96), (63, 100, 40)])
def test_network(T, D, F, dtype, random, agree) -> None:
    x = random(T, D, dtype=dtype)
    gate, up = (random(F, D, dtype=dtype, scale=D**-0.5) for _ in range(2))
    down = random(D, F, dtype=dtype, scale=F**-0.5)
    got = kernel.swiglu_ffn(x, gate, up, down)
    agree(got, reference.swiglu_ffn(x, gate, up, down), factor=3)


def test_many_small_tiles(random, agree) -> None:
    x, gate, up = random(50, 70), random(75, 70, scale=0.1), random(75, 70, scale=0.1)
    got = kernel.gemm_call(x, (gate, up), launch=SMALL).run()["y_ptr"]
    agree(got, reference.swiglu(x @ gate.T, x @ up.T), factor=3)
