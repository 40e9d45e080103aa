"""What is timed: every kernel at the sizes of Llama layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kernels_torch import (
    BF16,
    FP8,
    Function,
    angles,
    attention,
    decode_inputs,
    ffn_inputs,
    fp8_inputs,
    fp8_reference,
    normal,
    relu2_ffn,
    scaled_mm,
    swiglu_ffn,
    with_gradient,
)
from torch.nn import functional

from puzzle.blocks.kernels import gemm, gqa_decode, gqa_prefill, kl, relu2, rmsnorm, rope, swiglu


@dataclass(frozen=True)
class Case:
    """One kernel at one size: how to make its inputs, run it, and what it should reach.

    Attributes:
        ratio: library time over Triton time to reach, or None.
        copy_ratio: bytes a second over those of a copy to reach, or None.
        inputs: makes fresh tensors on the default device.
        ours: the operation of `blocks/kernels`, `why` its choice for those inputs.
        library: what it is compared with, by name; the first that runs is also the truth, and
            one called "reference" is not timed.
        flops, bytes: of one run, for the rates in the row.
    """

    name: str
    inputs: Function
    ours: Function
    why: Function
    library: dict[str, Function]
    flops: float = 0.0
    bytes: float = 0.0
    ratio: float | None = None
    copy_ratio: float | None = None


def cases() -> list[Case]:
    """The sizes of README.md's table: Llama-3.1-8B and 70B layers."""
    return [*_products(), *_networks(), *_prefills(), *_decodes(), *_rows(), *_divergences()]


def _products() -> Iterable[Case]:
    shapes = [(4096, 14336), (14336, 4096), (8192, 28672), (28672, 8192)]
    for D, F in shapes:
        for T in (1, 16, 64, 256, 4096, 8192):
            moved = 2.0 * (T * D + F * D + T * F)
            yield Case(
                f"gemm bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: (normal(T, D), normal(F, D, scale=D**-0.5)),
                ours=gemm.gemm,
                why=gemm.why,
                library={"cublas": functional.linear},
                flops=2.0 * T * D * F,
                bytes=moved,
                ratio=0.85,
            )
            yield Case(
                f"gemm fp8 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: fp8_inputs(T, D, F),
                ours=lambda x, w, a, b: gemm.gemm(x, w, scales=(a, b)),
                why=lambda x, w, a, b: gemm.why(x, w),
                library={"scaled_mm": scaled_mm} if T >= 16 else {"reference": fp8_reference},
                flops=2.0 * T * D * F,
                bytes=moved / 2 + T * F,
                ratio=0.85 if T >= 16 else None,
            )


def _networks() -> Iterable[Case]:
    for D, F in ((4096, 14336), (4096, 2816), (8192, 28672)):
        for T in (1, 64, 4096):
            yield Case(
                f"swiglu_ffn bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: ffn_inputs(T, D, F, weights=3),
                ours=swiglu.swiglu_ffn,
                why=swiglu.why,
                library={"cublas": swiglu_ffn},
                flops=6.0 * T * D * F,
                bytes=2.0 * (3 * D * F + 2 * T * D),
                ratio=0.85,
            )
            yield Case(
                f"relu2_ffn bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: ffn_inputs(T, D, F, weights=2),
                ours=relu2.relu2_ffn,
                why=relu2.why,
                library={"cublas": relu2_ffn},
                flops=4.0 * T * D * F,
                bytes=2.0 * (2 * D * F + 2 * T * D),
                ratio=0.85,
            )


def _prefills() -> Iterable[Case]:
    for H, K, d, T in (
        (32, 8, 128, 2048), (32, 8, 128, 8192), (32, 8, 128, 16384), (64, 8, 128, 8192),
        (32, 2, 128, 8192), (32, 8, 64, 8192),
    ):  # fmt: skip
        yield Case(
            f"gqa_prefill bf16 {H}/{K} heads of {d}, {T} tokens",
            inputs=lambda H=H, K=K, d=d, T=T: (
                normal(1, H, T, d),
                normal(1, K, T, d),
                normal(1, K, T, d),
            ),
            ours=gqa_prefill.gqa_prefill,
            why=gqa_prefill.why,
            library=attention(causal=True),
            flops=2.0 * H * d * T * T,  # half of the square
            bytes=4.0 * (H + K) * T * d,
            ratio=0.7,
        )


def _decodes() -> Iterable[Case]:
    for B, K, S in (
        (1, 8, 8192), (16, 8, 8192), (64, 8, 2048), (64, 8, 8192), (256, 8, 1024),
        (64, 4, 8192), (64, 2, 8192), (64, 1, 8192),
    ):  # fmt: skip
        for kind, name in ((BF16, "bf16"), (FP8, "fp8")):
            yield Case(
                f"gqa_decode {name} batch {B}, 32/{K} heads of 128, {S} tokens",
                inputs=lambda B=B, K=K, S=S, kind=kind: decode_inputs(B, K, S, kind),
                ours=gqa_decode.gqa_decode,
                why=gqa_decode.why,
                library=attention(causal=False)
                if kind == BF16
                else {"reference": gqa_decode.reference.gqa_decode},
                flops=4.0 * B * 32 * 128 * S,
                bytes=2.0 * B * K * S * 128 * (2 if kind == BF16 else 1),
                copy_ratio=0.85,
            )


def _rows() -> Iterable[Case]:
    for N, D in ((64, 4096), (8192, 4096), (8192, 8192)):
        yield Case(
            f"rmsnorm bf16 {N}x{D}",
            inputs=lambda N=N, D=D: (normal(N, D), normal(D)),
            ours=rmsnorm.rmsnorm,
            why=rmsnorm.why,
            library={"torch": lambda x, w: functional.rms_norm(x, w.shape, w, 1e-6)},
            bytes=4.0 * N * D,
            copy_ratio=0.85 if N > 1000 else None,
        )
        yield Case(
            f"add_rmsnorm bf16 {N}x{D}",
            inputs=lambda N=N, D=D: (normal(N, D), normal(N, D), normal(D)),
            ours=rmsnorm.add_rmsnorm,
            why=rmsnorm.why,
            library={"torch": lambda x, r, w: rmsnorm.reference.add_rmsnorm(x, r, w, eps=1e-6)},
            bytes=8.0 * N * D,
            copy_ratio=0.85 if N > 1000 else None,
        )
    for N in (64, 8192):
        yield Case(
            f"swiglu bf16 {N}x14336",
            inputs=lambda N=N: (normal(N, 14336), normal(N, 14336)),
            ours=swiglu.swiglu,
            why=swiglu.why,
            library={"torch": lambda gate, up: functional.silu(gate) * up},
            bytes=6.0 * N * 14336,
            copy_ratio=0.85 if N > 1000 else None,
        )
    yield Case(
        "relu2 bf16 8192x24576",
        inputs=lambda: (normal(8192, 24576),),
        ours=relu2.relu2,
        why=relu2.why,
        library={"torch": lambda x: x.relu().square()},
        bytes=4.0 * 8192 * 24576,
        copy_ratio=0.85,
    )
    yield Case(
        "rope bf16 32 heads of 128, 8192 tokens",
        inputs=lambda: (normal(1, 8192, 32, 128).transpose(1, 2), *angles(8192, 128)),
        ours=rope.rope,
        why=rope.why,
        library={"torch": rope.reference.rope},
        bytes=4.0 * 8192 * 32 * 128,
    )


def _divergences() -> Iterable[Case]:
    for N, V in ((4096, 128256), (8192, 49152)):
        common = {
            "inputs": lambda N=N, V=V: (normal(N, V, scale=3), normal(N, V, scale=3)),
            "why": kl.why,
        }
        yield Case(
            f"kl bf16 {N}x{V}",
            ours=kl.kl,
            library={"torch": kl.reference.kl},
            bytes=4.0 * N * V,
            **common,
        )
        yield Case(
            f"kl bf16 {N}x{V} with gradient",
            ours=with_gradient(kl.kl),
            library={"torch": with_gradient(kl.reference.kl)},
            bytes=10.0 * N * V,
            **common,
        )
