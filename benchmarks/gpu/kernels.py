"""Every kernel of `blocks/kernels` against the best library kernel, on the GPU at hand.

    python benchmarks/gpu/kernels.py [part of a case's name ...] [--again]

First every kernel is compared with its torch reference at odd sizes and with the library at the
size to be timed; a kernel that is wrong is reported and not timed. Then both are timed alternately
as CUDA graphs over rotating inputs larger than the L2 cache. Rows are written one by one to
`benchmarks/results/kernels_<device>.json`; running again times what is missing, or what was
measured with other kernels or versions (everything with --again).

Columns: `ratio` is the best library time over the Triton time (above 1 Triton is faster);
`copy_ratio` the kernel's bytes a second over those of a copy. Times are seconds, medians of
samples; spread is (90th - 10th percentile) / median.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from puzzle.blocks.kernels import gemm, gqa_decode, gqa_prefill, kl, relu2, rmsnorm, rope, swiglu

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import record  # noqa: E402

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
ROTATED_BYTES = 256 * 2**20  # several times the L2 cache of an H100 (50 MiB)
SAMPLES, SAMPLE_S = 25, 5e-3
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, BF16: 2e-2}
Function = Callable[..., Any]


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
    """The sizes of design/hardware.md's table: Llama-3.1-8B and 70B layers."""
    return [*_products(), *_networks(), *_prefills(), *_decodes(), *_rows(), *_divergences()]


def _normal(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def _products() -> Iterable[Case]:
    shapes = [(4096, 14336), (14336, 4096), (8192, 28672), (28672, 8192)]
    for D, F in shapes:
        for T in (1, 16, 64, 256, 4096, 8192):
            moved = 2.0 * (T * D + F * D + T * F)
            yield Case(
                f"gemm bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: (_normal(T, D), _normal(F, D, scale=D**-0.5)),
                ours=gemm.gemm,
                why=gemm.why,
                library={"cublas": functional.linear},
                flops=2.0 * T * D * F,
                bytes=moved,
                ratio=0.85,
            )
            yield Case(
                f"gemm fp8 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: _fp8_inputs(T, D, F),
                ours=lambda x, w, a, b: gemm.gemm(x, w, scales=(a, b)),
                why=lambda x, w, a, b: gemm.why(x, w),
                library={"scaled_mm": _scaled_mm} if T >= 16 else {"reference": _fp8_reference},
                flops=2.0 * T * D * F,
                bytes=moved / 2 + T * F,
                ratio=0.85 if T >= 16 else None,
            )


def _fp8_inputs(T: int, D: int, F: int) -> tuple[torch.Tensor, ...]:
    one = torch.ones(1)
    return _normal(T, D, dtype=FP8), _normal(F, D, dtype=FP8), 0.5 * one, D**-0.5 * one


def _scaled_mm(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch._scaled_mm(x, w.T, a, b, out_dtype=BF16, use_fast_accum=True)


def _fp8_reference(
    x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    return gemm.reference.gemm(x, w, scales=(a, b))


def _networks() -> Iterable[Case]:
    for D, F in ((4096, 14336), (4096, 2816), (8192, 28672)):
        for T in (1, 64, 4096):
            yield Case(
                f"swiglu_ffn bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: _ffn_inputs(T, D, F, weights=3),
                ours=swiglu.swiglu_ffn,
                why=swiglu.why,
                library={"cublas": _swiglu_ffn},
                flops=6.0 * T * D * F,
                bytes=2.0 * (3 * D * F + 2 * T * D),
                ratio=0.85,
            )
            yield Case(
                f"relu2_ffn bf16 {T}x{D}x{F}",
                inputs=lambda T=T, D=D, F=F: _ffn_inputs(T, D, F, weights=2),
                ours=relu2.relu2_ffn,
                why=relu2.why,
                library={"cublas": _relu2_ffn},
                flops=4.0 * T * D * F,
                bytes=2.0 * (2 * D * F + 2 * T * D),
                ratio=0.85,
            )


def _ffn_inputs(T: int, D: int, F: int, *, weights: int) -> tuple[torch.Tensor, ...]:
    first = [_normal(F, D, scale=D**-0.5) for _ in range(weights - 1)]
    return _normal(T, D), *first, _normal(D, F, scale=F**-0.5)


def _swiglu_ffn(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    hidden = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
    return functional.linear(hidden, down)


def _relu2_ffn(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return functional.linear(functional.linear(x, up).relu().square(), down)


def _sdpa(backend: SDPBackend, *, causal: bool) -> Function:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        q = q if causal else q.unsqueeze(2)  # one query a sequence
        with sdpa_kernel(backend):
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return o if causal else o.squeeze(2)

    return attend


def _prefills() -> Iterable[Case]:
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for H, K, d, T in (
        (32, 8, 128, 2048), (32, 8, 128, 8192), (32, 8, 128, 16384), (64, 8, 128, 8192),
        (32, 2, 128, 8192), (32, 8, 64, 8192),
    ):  # fmt: skip
        yield Case(
            f"gqa_prefill bf16 {H}/{K} heads of {d}, {T} tokens",
            inputs=lambda H=H, K=K, d=d, T=T: (
                _normal(1, H, T, d),
                _normal(1, K, T, d),
                _normal(1, K, T, d),
            ),
            ours=gqa_prefill.gqa_prefill,
            why=gqa_prefill.why,
            library={name: _sdpa(backend, causal=True) for name, backend in backends.items()},
            flops=2.0 * H * d * T * T,  # half of the square
            bytes=4.0 * (H + K) * T * d,
            ratio=0.7,
        )


def _decodes() -> Iterable[Case]:
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for B, K, S in (
        (1, 8, 8192), (16, 8, 8192), (64, 8, 2048), (64, 8, 8192), (256, 8, 1024),
        (64, 4, 8192), (64, 2, 8192), (64, 1, 8192),
    ):  # fmt: skip
        for kind, name in ((BF16, "bf16"), (FP8, "fp8")):
            library = {n: _sdpa(backend, causal=False) for n, backend in backends.items()}
            yield Case(
                f"gqa_decode {name} batch {B}, 32/{K} heads of 128, {S} tokens",
                inputs=lambda B=B, K=K, S=S, kind=kind: _decode_inputs(B, K, S, kind),
                ours=gqa_decode.gqa_decode,
                why=gqa_decode.why,
                library=library if kind == BF16 else {"reference": gqa_decode.reference.gqa_decode},
                flops=4.0 * B * 32 * 128 * S,
                bytes=2.0 * B * K * S * 128 * (2 if kind == BF16 else 1),
                copy_ratio=0.85,
            )


def _decode_inputs(B: int, K: int, S: int, kind: torch.dtype) -> tuple[torch.Tensor, ...]:
    cache = [_normal(B, K, S, 128).to(kind) for _ in range(2)]
    return _normal(B, 32, 128), *cache, torch.full((B,), S, dtype=torch.int32)


def _rows() -> Iterable[Case]:
    for N, D in ((64, 4096), (8192, 4096), (8192, 8192)):
        yield Case(
            f"rmsnorm bf16 {N}x{D}",
            inputs=lambda N=N, D=D: (_normal(N, D), _normal(D)),
            ours=rmsnorm.rmsnorm,
            why=rmsnorm.why,
            library={"torch": lambda x, w: functional.rms_norm(x, w.shape, w, 1e-6)},
            bytes=4.0 * N * D,
            copy_ratio=0.85 if N > 1000 else None,
        )
        yield Case(
            f"add_rmsnorm bf16 {N}x{D}",
            inputs=lambda N=N, D=D: (_normal(N, D), _normal(N, D), _normal(D)),
            ours=rmsnorm.add_rmsnorm,
            why=rmsnorm.why,
            library={"torch": lambda x, r, w: rmsnorm.reference.add_rmsnorm(x, r, w, eps=1e-6)},
            bytes=8.0 * N * D,
            copy_ratio=0.85 if N > 1000 else None,
        )
    for N in (64, 8192):
        yield Case(
            f"swiglu bf16 {N}x14336",
            inputs=lambda N=N: (_normal(N, 14336), _normal(N, 14336)),
            ours=swiglu.swiglu,
            why=swiglu.why,
            library={"torch": lambda gate, up: functional.silu(gate) * up},
            bytes=6.0 * N * 14336,
            copy_ratio=0.85 if N > 1000 else None,
        )
    yield Case(
        "relu2 bf16 8192x24576",
        inputs=lambda: (_normal(8192, 24576),),
        ours=relu2.relu2,
        why=relu2.why,
        library={"torch": lambda x: x.relu().square()},
        bytes=4.0 * 8192 * 24576,
        copy_ratio=0.85,
    )
    yield Case(
        "rope bf16 32 heads of 128, 8192 tokens",
        inputs=lambda: (_normal(1, 8192, 32, 128).transpose(1, 2), *_angles(8192, 128)),
        ours=rope.rope,
        why=rope.why,
        library={"torch": rope.reference.rope},
        bytes=4.0 * 8192 * 32 * 128,
    )


def _angles(T: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.rand(1, T, d // 2).mul(6.28).repeat(1, 1, 2)
    return angle.cos().to(BF16), angle.sin().to(BF16)


def _divergences() -> Iterable[Case]:
    for N, V in ((4096, 128256), (8192, 49152)):
        common = {
            "inputs": lambda N=N, V=V: (_normal(N, V, scale=3), _normal(N, V, scale=3)),
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
            ours=_with_gradient(kl.kl),
            library={"torch": _with_gradient(kl.reference.kl)},
            bytes=10.0 * N * V,
            **common,
        )


def _with_gradient(divergence: Function) -> Function:
    def compute(parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        leaf = child.detach().requires_grad_()
        return torch.autograd.grad(divergence(parent, leaf).sum(), leaf)[0]

    return compute


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


def odd_sizes() -> dict[str, tuple[Function, Function, Function]]:
    """By operation: it, its reference, and inputs that fill no tile."""
    return {
        "gemm": (gemm.gemm, gemm.reference.gemm, lambda: (_normal(63, 80), _normal(65, 80))),
        "swiglu_ffn": (
            swiglu.swiglu_ffn,
            swiglu.reference.swiglu_ffn,
            lambda: _ffn_inputs(63, 80, 112, weights=3),
        ),
        "relu2_ffn": (
            relu2.relu2_ffn,
            relu2.reference.relu2_ffn,
            lambda: _ffn_inputs(63, 80, 112, weights=2),
        ),
        "gqa_prefill": (
            partial(gqa_prefill.gqa_prefill, window=100),
            partial(gqa_prefill.reference.gqa_prefill, window=100),
            lambda: (_normal(1, 6, 301, 80), _normal(1, 2, 301, 80), _normal(1, 2, 301, 80)),
        ),
        "gqa_decode": (
            gqa_decode.gqa_decode,
            gqa_decode.reference.gqa_decode,
            lambda: (
                _normal(3, 6, 80),
                *_normal(2, 3, 2, 77, 80),
                torch.tensor([77, 1, 63], dtype=torch.int32),
            ),
        ),
        "rmsnorm": (
            rmsnorm.rmsnorm,
            partial(rmsnorm.reference.rmsnorm, eps=1e-6),
            lambda: (_normal(63, 1000), _normal(1000)),
        ),
        "add_rmsnorm": (
            rmsnorm.add_rmsnorm,
            partial(rmsnorm.reference.add_rmsnorm, eps=1e-6),
            lambda: (_normal(63, 1000), _normal(63, 1000), _normal(1000)),
        ),
        "swiglu": (
            swiglu.swiglu,
            swiglu.reference.swiglu,
            lambda: (_normal(63, 1001), _normal(63, 1001)),
        ),
        "relu2": (relu2.relu2, relu2.reference.relu2, lambda: (_normal(63, 1001),)),
        "rope": (
            rope.rope,
            rope.reference.rope,
            lambda: (_normal(1, 3, 63, 80), *_angles(63, 40)),
        ),
        "kl": (
            _with_gradient(kl.kl),
            _with_gradient(kl.reference.kl),
            lambda: (_normal(63, 5001), _normal(63, 5001)),
        ),
    }


def wrong(case: Case, truth: Function) -> str:
    """Why the case must not be timed; empty when the kernel is right."""
    torch.manual_seed(0)
    inputs = case.inputs()
    reason = case.why(*inputs)
    if "runs the Triton kernel" not in reason:
        return reason
    ours, reference, make = odd_sizes()[case.name.split()[0]]
    return _differ("odd sizes", ours, reference, make()) or _differ("", case.ours, truth, inputs)


def _differ(where: str, ours: Function, truth: Function, inputs: tuple[torch.Tensor, ...]) -> str:
    want = truth(*inputs)
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors start as NaN
    got = ours(*inputs)
    torch.use_deterministic_algorithms(False)
    found, allowed = error(got, want), tolerance(want)
    return "" if found <= allowed else f"{where} error {found:.2g} above {allowed:.2g}".strip()


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: the median of samples, and (p90 - p10) / median."""

    median_s: float
    spread: float


def summarize(samples_s: list[float]) -> Timing:
    """Median and spread of samples."""
    tenths = statistics.quantiles(samples_s, n=10, method="inclusive")
    median = statistics.median(samples_s)
    return Timing(median, (tenths[-1] - tenths[0]) / median)


def measure(functions: dict[str, Function], make: Function) -> dict[str, Timing]:
    """Time functions alternately, each as a CUDA graph over the same rotating inputs."""
    copies = _rotating(make)
    graphs = {name: _graph(function, copies) for name, function in functions.items()}
    replays = {name: max(1, round(SAMPLE_S / _replay_s(g, 1))) for name, g in graphs.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(SAMPLES):
        for name, graph in graphs.items():
            samples[name].append(_replay_s(graph, replays[name]) / len(copies))
    return {name: summarize(found) for name, found in samples.items()}


def _rotating(make: Function) -> list[tuple[torch.Tensor, ...]]:
    """Fresh inputs, as many as it takes to leave nothing of the first in the cache."""
    first = make()
    size = sum(tensor.numel() * tensor.element_size() for tensor in first)
    count = max(2, min(64, -(-ROTATED_BYTES // size)))
    return [first, *(make() for _ in range(count - 1))]


def _graph(function: Function, copies: list[tuple[torch.Tensor, ...]]) -> torch.cuda.CUDAGraph:
    """One pass over the copies, warmed up outside the graph as torch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*copies[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in copies:
            function(*inputs)
    return graph


def _replay_s(graph: torch.cuda.CUDAGraph, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / times


def copy_bytes_s() -> float:
    """Bytes a second, read and written, of a copy far larger than the cache."""
    size = 2**30
    timing = measure({"copy": torch.clone}, lambda: (_normal(size // 2),))["copy"]
    return 2 * size / timing.median_s


def run_case(case: Case, copy_rate: float) -> dict[str, Any]:
    """The row of one case: wrong, or timed."""
    row: dict[str, Any] = {"case": case.name, "kernels": fingerprint(), "versions": versions()}
    working, broken = _working(case)
    if failure := wrong(case, next(iter(working.values()))):
        return row | {"wrong": failure}
    library = {name: function for name, function in working.items() if name != "reference"}
    timings = measure({"triton": case.ours} | library, case.inputs)
    return row | judge(case, timings, copy_rate) | ({"unavailable": broken} if broken else {})


def _working(case: Case) -> tuple[dict[str, Function], dict[str, str]]:
    """The library functions that run at this size, and what the others answered."""
    working, broken = {}, {}
    inputs = case.inputs()
    for name, function in case.library.items():
        try:
            function(*inputs)
        except RuntimeError as answer:
            broken[name] = str(answer).splitlines()[0]
        else:
            working[name] = function
    return working, broken


def judge(case: Case, timings: dict[str, Timing], copy_rate: float) -> dict[str, Any]:
    """Rates, ratios and whether the targets are met."""
    ours = timings["triton"]
    library = {name: timing for name, timing in timings.items() if name != "triton"}
    row: dict[str, Any] = {
        "seconds": {name: timing.median_s for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "tflop_s": case.flops / ours.median_s / 1e12,
        "tb_s": case.bytes / ours.median_s / 1e12,
        "copy_ratio": case.bytes / ours.median_s / copy_rate,
    }
    if library:
        row["best_library"] = min(library, key=lambda name: library[name].median_s)
        row["ratio"] = library[row["best_library"]].median_s / ours.median_s
    targets = {"ratio": case.ratio, "copy_ratio": case.copy_ratio}
    row["targets"] = {name: target for name, target in targets.items() if target is not None}
    row["met"] = all(row.get(name, 0.0) >= target for name, target in row["targets"].items())
    return row


def fingerprint() -> str:
    """Of the kernels' source: a row measured with other kernels is measured again."""
    digest = hashlib.sha256()
    for path in sorted((HERE.parents[1] / "blocks" / "kernels").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what else decides a time."""
    return {name: importlib.metadata.version(name) for name in ("torch", "triton")}


def kept(rows: list[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of these cases that were measured with today's kernels and versions."""
    now = {"kernels": fingerprint(), "versions": versions()}
    wanted = set(names)
    return [r for r in rows if r["case"] in wanted and all(r[k] == v for k, v in now.items())]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and per kernel the worst and the median ratio to the best library kernel."""
    timed = [row for row in rows if "seconds" in row]
    ratios: dict[str, list[float]] = {}
    for row in timed:
        if "ratio" in row:
            ratios.setdefault(" ".join(row["case"].split()[:2]), []).append(row["ratio"])
    return {
        "cases": len(rows),
        "wrong": sum("wrong" in row for row in rows),
        "below_target": sum(not row["met"] for row in timed),
        "ratio": {
            name: {"worst": min(found), "median": statistics.median(found)}
            for name, found in ratios.items()
        },
    }


def main() -> int:
    """Check, time and write what is missing; 1 when a kernel is wrong, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--again", action="store_true", help="time everything again")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no CUDA device, and Triton kernels are timed on one.")
        return 2
    torch.set_default_device("cuda")
    name = "kernels_" + re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    path = record.RESULTS / f"{name}.json"
    every = cases()
    rows = json.loads(path.read_text())["rows"] if path.exists() and not options.again else []
    rows = kept(rows, (case.name for case in every))
    done = {row["case"] for row in rows}
    chosen = [c for c in every if not options.parts or any(p in c.name for p in options.parts)]
    copy_rate = copy_bytes_s()
    print(f"copy: {copy_rate / 1e12:.2f} TB/s")
    for case in chosen:
        if case.name in done:
            continue
        rows.append(run_case(case, copy_rate) | {"copy_tb_s": copy_rate / 1e12})
        record.write(name, summary(rows), rows)
        print(line(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    print(f"{path}: {json.dumps(summary(rows))}")
    return 1 if any("wrong" in row for row in rows) else 0


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    if "wrong" in row:
        return f"{row['case']:56} WRONG: {row['wrong']}"
    ratio = f"{row['ratio']:.2f}x {row['best_library']}" if "ratio" in row else "-"
    return (
        f"{row['case']:56} {row['seconds']['triton'] * 1e6:10.1f} us {row['tflop_s']:7.1f} TFLOP/s "
        f"{row['tb_s']:5.2f} TB/s  {ratio:18} {'' if row['met'] else 'below target'}"
    )


if __name__ == "__main__":
    sys.exit(main())
