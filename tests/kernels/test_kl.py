"""Forward KL: kernel against reference, values and gradient, at extremes and near zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzle.blocks.kernels.kl import reference
from puzzle.blocks.kernels.kl import triton as kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("N", "V", "dtype"),
    [
        (1, 1, torch.float32),
        (63, 100, torch.float32),
        (2, 4096, torch.float16),
        (3, 9001, torch.float32),
        (3, 9001, torch.bfloat16),
    ],
)
def test_values_and_gradient(N, V, dtype, random, agree, results) -> None:
    parent, child = random(N, V, dtype=dtype, scale=3), random(N, V, dtype=dtype, scale=3)
    seed = random(N)
    got = results(lambda c: kernel.kl(parent, c), [child], [seed])
    want = results(lambda c: reference.kl(parent, c), [child], [seed])
    for one, other in zip(got, want, strict=True):
        agree(one, other)


def test_gradient_of_a_mean_over_leading_axes(random, agree, results) -> None:
    parent, child = random(2, 3, 50), random(2, 3, 50)
    seed = torch.tensor(1.0, device=DEVICE)
    got = results(lambda c: kernel.kl(parent, c).mean(), [child], [seed])
    want = results(lambda c: reference.kl(parent, c).mean(), [child], [seed])
    for one, other in zip(got, want, strict=True):
        agree(one, other)


def test_small_divergences_keep_their_digits(random) -> None:
    parent = random(16, 5000, scale=3).contiguous()
    child = parent + 1e-2 * torch.randn_like(parent)
    exact = reference_in_double(parent, child)
    assert exact.max() < 1e-3
    assert (kernel.kl(parent, child) - exact).abs().max() < 1e-6


def reference_in_double(parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
    log_p, log_c = parent.double().log_softmax(-1), child.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_c)).sum(-1)


def test_excluded_tokens_count_nothing(random, agree) -> None:
    parent, child = random(2, 5000), random(2, 5000)
    parent[:, :4200] = -torch.inf  # more than the first chunk
    child[:, :4200] = -torch.inf
    agree(kernel.kl(parent, child), reference.kl(parent[:, 4200:], child[:, 4200:]))
    parent[:, 4990] = 3.0
    child[:, 4990] = -torch.inf
    assert kernel.kl(parent, child).isinf().all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0.01, 30))
def test_never_negative_zero_on_itself_and_blind_to_shifts(V, shift, other, scale) -> None:
    torch.manual_seed(V)
    parent, child = scale * torch.randn(2, 4, V, device=DEVICE)
    divergence = kernel.kl(parent, child)
    assert (divergence >= -1e-5).all()
    assert kernel.kl(parent, parent).abs().max() == 0
    rounded = (abs(shift) + abs(other)) * 1e-6 + 1e-4
    moved = kernel.kl(parent + shift, child + other)
    torch.testing.assert_close(moved, divergence, rtol=1e-4, atol=rounded)
