"""The Fisher score: KL(parent || child) of a small change at one layer, to second order.

With d_s the change of the stream at position s, and g_s a gradient sampled there (see trace.py):

- sequence form, `1/2 E (sum_s g_s . d_s)^2`: unbiased to second order;
- per-token form, `1/2 E sum_s (g_s . d_s)^2`: without the cross terms between positions, exact at
  the last layer only, but of far lower variance, so it ranks better from few samples.

Legend: K samples, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

import torch

SCALE, FISHER_POWER, CHANGE_POWER = 2.6, 0.66, 0.45


def per_token(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    """`1/2 mean_k (g . d)^2` averaged over the tokens of each sequence [S]."""
    return dot(gradient_KSTD, change_STD).square().mean(dim=(0, 2)) / 2


def per_sequence(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    """`1/2 mean_k (sum_t g . d)^2` divided by the tokens of each sequence [S]; unbiased."""
    products = dot(gradient_KSTD, change_STD)
    return products.sum(dim=2).square().mean(dim=0) / (2 * products.shape[2])


def corrected(fisher: float, change: float) -> float:
    """The KL to expect, by what blocks of two models really cost (benchmarks/LOG.md).

    The form understates large changes, and in layers where gradients are few and large it is noisy;
    the change of the stream knows nothing of what matters, but is sure. Their weighted geometric
    mean is nearer to the exact KL than either.
    """
    return SCALE * fisher**FISHER_POWER * change**CHANGE_POWER


def relative_change(change_STD: torch.Tensor, stream_STD: torch.Tensor) -> float:
    """`|d|^2 / |h|^2`, averaged over tokens."""
    shares = change_STD.float().square().sum(-1) / stream_STD.float().square().sum(-1)
    return float(shares.mean())


def dot(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    """`g . d` of every sample and token [K, S, T]."""
    return torch.einsum("kstd,std->kst", gradient_KSTD.float(), change_STD.float())
