"""Whether a kernel is right: one that is wrong is not timed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from kernels_cases import Case
from kernels_torch import BF16, Function, angles, ffn_inputs, normal, with_gradient

from puzzle.blocks.kernels import gemm, gqa_decode, gqa_prefill, kl, relu2, rmsnorm, rope, swiglu

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, BF16: 2e-2}


def wrong(case: Case, truth: Function) -> str:
    """Why the case must not be timed; empty when the kernel is right."""
    torch.manual_seed(0)
    inputs = case.inputs()
    reason = case.why(*inputs)
    if "runs the Triton kernel" not in reason:
        return reason
    ours, reference, make = odd_sizes()[case.name.split()[0]]
    return _differ("odd sizes", ours, reference, make()) or _differ("", case.ours, truth, inputs)


def odd_sizes() -> dict[str, tuple[Function, Function, Function]]:
    """By operation: it, its reference, and inputs that fill no tile."""
    return {
        "gemm": (gemm.gemm, gemm.reference.gemm, lambda: (normal(63, 80), normal(65, 80))),
        "swiglu_ffn": (
            swiglu.swiglu_ffn,
            swiglu.reference.swiglu_ffn,
            lambda: ffn_inputs(63, 80, 112, weights=3),
        ),
        "relu2_ffn": (
            relu2.relu2_ffn,
            relu2.reference.relu2_ffn,
            lambda: ffn_inputs(63, 80, 112, weights=2),
        ),
        "gqa_prefill": (
            partial(gqa_prefill.gqa_prefill, window=100),
            partial(gqa_prefill.reference.gqa_prefill, window=100),
            lambda: (normal(1, 6, 301, 80), normal(1, 2, 301, 80), normal(1, 2, 301, 80)),
        ),
        "gqa_decode": (
            gqa_decode.gqa_decode,
            gqa_decode.reference.gqa_decode,
            lambda: (
                normal(3, 6, 80),
                *normal(2, 3, 2, 77, 80),
                torch.tensor([77, 1, 63], dtype=torch.int32),
            ),
        ),
        "rmsnorm": (
            rmsnorm.rmsnorm,
            partial(rmsnorm.reference.rmsnorm, eps=1e-6),
            lambda: (normal(63, 1000), normal(1000)),
        ),
        "add_rmsnorm": (
            rmsnorm.add_rmsnorm,
            partial(rmsnorm.reference.add_rmsnorm, eps=1e-6),
            lambda: (normal(63, 1000), normal(63, 1000), normal(1000)),
        ),
        "swiglu": (
            swiglu.swiglu,
            swiglu.reference.swiglu,
            lambda: (normal(63, 1001), normal(63, 1001)),
        ),
        "relu2": (relu2.relu2, relu2.reference.relu2, lambda: (normal(63, 1001),)),
        "rope": (
            rope.rope,
            rope.reference.rope,
            lambda: (normal(1, 3, 63, 80), *angles(63, 40)),
        ),
        "kl": (
            with_gradient(kl.kl),
            with_gradient(kl.reference.kl),
            lambda: (normal(63, 5001), normal(63, 5001)),
        ),
    }


def _differ(where: str, ours: Function, truth: Function, inputs: tuple[torch.Tensor, ...]) -> str:
    want = truth(*inputs)
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors start as NaN
    got = ours(*inputs)
    torch.use_deterministic_algorithms(False)
    found, allowed = error(got, want), tolerance(want)
    return "" if found <= allowed else f"{where} error {found:.2g} above {allowed:.2g}".strip()


def error(got: Any, want: Any) -> float:
    """Largest difference as a share of the largest value wanted; infinite where not finite."""
    if isinstance(got, tuple):
        return max(error(one, other) for one, other in zip(got, want, strict=True))
    if got.shape != want.shape or not bool(got.isfinite().all()):
        return float("inf")
    largest = float(want.float().abs().max())
    return float((got.float() - want.float()).abs().max()) / max(largest, 1e-30)


def tolerance(value: Any) -> float:
    """How large an error of this result may be."""
    return TOLERANCE[(value[0] if isinstance(value, tuple) else value).dtype]
