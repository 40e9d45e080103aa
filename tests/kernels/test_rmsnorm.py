"""RMS normalisation: kernel against reference, with and without the residual."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from puzzle.blocks.kernels.rmsnorm import reference
from puzzle.blocks.kernels.rmsnorm import triton as kernel

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("N", "D", "dtype"),
    [
        (1, 63, torch.float32),
        (63, 100, torch.float32),
        (3, 1000, HALF),
        (3, 1000, BRAIN),
        (2, 2049, BRAIN),
    ],
)
def test_values_and_gradients(N, D, dtype, random, agree, results) -> None:
    inputs, dy = [random(N, D, dtype=dtype), random(D, dtype=dtype)], random(N, D, dtype=dtype)
    got = results(lambda x, w: kernel.rmsnorm(x, w, 1e-5), inputs, [dy])
    want = results(lambda x, w: reference.rmsnorm(x, w, 1e-5), inputs, [dy])
    for one, other in zip(got, want, strict=True):
        agree(one, other, factor=2)


@pytest.mark.parametrize(
    ("N", "D", "dtype"), [(1, 63, HALF), (5, 100, BRAIN), (63, 100, torch.float32)]
)
def test_residual_values_and_gradients(N, D, dtype, random, agree, results) -> None:
    inputs = [random(N, D, dtype=dtype), random(N, D, dtype=dtype), random(D, dtype=dtype)]
    seeds = [random(N, D, dtype=dtype) for _ in range(2)]
    got = results(lambda *t: kernel.add_rmsnorm(*t, eps=1e-6), inputs, seeds)
    want = results(lambda *t: reference.add_rmsnorm(*t, eps=1e-6), inputs, seeds)
    for one, other in zip(got, want, strict=True):
        agree(one, other, factor=3)


def test_more_rows_than_backward_programs(random, agree) -> None:
    saved, dy = (random(300, 5), random(5), random(300).abs()), random(300, 5).contiguous()
    assert kernel.backward_call(saved, dy, None).grid == (264,)
    few = replace(kernel.backward_call(saved, dy, None), grid=(7,))
    got = few.run()["dx_ptr"], few.arguments["dweight_ptr"][:7].sum(0)
    normed = saved[0] * saved[2][:, None]
    agree(got[1], (dy * normed).sum(0), factor=3)
    inner = (normed * dy * saved[1]).mean(-1, keepdim=True)
    agree(got[0], saved[2][:, None] * (dy * saved[1] - normed * inner), factor=3)


def test_an_unused_sum_has_no_gradient(random, agree, results) -> None:
    inputs, dy = [random(4, 7), random(4, 7), random(7)], random(4, 7)
    got = results(lambda *t: kernel.add_rmsnorm(*t, eps=1e-6)[0], inputs, [dy])
    want = results(lambda *t: reference.add_rmsnorm(*t, eps=1e-6)[0], inputs, [dy])
    for one, other in zip(got, want, strict=True):
        agree(one, other, factor=2)


def test_weight_of_another_type_promotes(random, agree) -> None:
    x, weight = random(3, 40, dtype=torch.float16), random(40)
    agree(kernel.rmsnorm(x, weight, 1e-6), reference.rmsnorm(x, weight, 1e-6), factor=50)


def test_one_column_is_its_sign(random, agree) -> None:
    x, weight = random(3, 1), random(1)
    agree(kernel.rmsnorm(x, weight, 0.0), x.sign() * weight)


def test_scale_invariant(random, agree) -> None:
    x, weight = random(2, 3, 50), random(50)
    agree(kernel.rmsnorm(1000 * x, weight, 0.0), kernel.rmsnorm(x, weight, 0.0))


def test_too_wide_a_row_is_an_error(random) -> None:
    with pytest.raises(ValueError, match="at most 16384 columns, not 16385"):
        kernel.rmsnorm(random(1, 16385), random(16385), 1e-6)
    x, weight = random(1, 8193).requires_grad_(), random(8193)
    with pytest.raises(ValueError, match="at most 8192 columns, not 8193"):
        kernel.rmsnorm(x, weight, 1e-6).sum().backward()
