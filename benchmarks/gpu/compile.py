"""Compile every kernel ahead of time for an H100 (sm_90a); no GPU is needed.

    python benchmarks/gpu/compile.py [part of a name ...]

Each launch of `blocks/kernels/launch.py` is compiled from the very `Call` its launcher builds, on
tensors without storage. Exit code 1 when a kernel exceeds the shared memory of a multiprocessor
(Triton compiles such a kernel without a word), spills registers, or multiplies matrices without
the tensor-core instruction meant for it: of Hopper's warp groups (wgmma), or of warps (mma).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

if os.environ.pop("TRITON_INTERPRET", "0") == "1":
    raise SystemExit("compile without TRITON_INTERPRET=1: interpreted kernels have no machine code")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from puzzle.blocks.kernels.gemm import triton as gemm
from puzzle.blocks.kernels.gqa_decode import triton as gqa_decode
from puzzle.blocks.kernels.gqa_prefill import triton as gqa_prefill
from puzzle.blocks.kernels.kl import triton as kl
from puzzle.blocks.kernels.launch import LAUNCHES, Call
from puzzle.blocks.kernels.relu2 import triton as relu2
from puzzle.blocks.kernels.rmsnorm import WIDEST_BACKWARD
from puzzle.blocks.kernels.rmsnorm import triton as rmsnorm
from puzzle.blocks.kernels.rope import triton as rope
from puzzle.blocks.kernels.swiglu import triton as swiglu

TARGET = GPUTarget("cuda", 90, 32)
SHARED_LIMIT = 232_448  # bytes a block may use on sm_90
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
NAMES = {
    BF16: "bf16",
    FP16: "fp16",
    FP32: "fp32",
    FP8: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
}
# of products whose factors are in a dtype; of fp32 they are to be right, not fast
INSTRUCTIONS = {BF16: "wgmma bf16", FP16: "wgmma f16", FP8: "wgmma e4m3", FP32: None}
PRODUCT = re.compile(  # in PTX, with the dtype of its factors
    r"\b(wgmma|mma)\.(?:mma_async\.)?sync\.aligned\.m\d+n\d+k\d+\.(?:row\.col\.)?f32\.(\w+)"
)


@dataclass(frozen=True)
class Case:
    """A launch to compile and the tensor-core instruction it must use (None: no matrices)."""

    name: str
    call: Call
    instruction: str | None = None


@dataclass(frozen=True)
class Report:
    """What the machine code of one case uses; `failure` is empty when it passes."""

    name: str
    shared_bytes: int
    registers: int
    spills: int
    instruction: str
    failure: str


def cases() -> list[Case]:
    """Every row of the launch table, at the shapes of Llama-3.1-8B where a shape matters."""
    return [*_row_cases(), *_attention_cases(), *_product_cases(), *_unit_cases()]


def _row_cases() -> Iterator[Case]:
    for dtype, widths in ((BF16, (576, 2048, 4096, 8192, 16384)), (FP32, (8192, 16384))):
        for D in widths:
            x, weight, rstd = _empty(512, D, dtype), _empty(D, dtype), _empty(512, FP32)
            for add in (False, True):
                other = x if add else None
                name = f"{'add_' * add}rmsnorm {D} {NAMES[dtype]}"
                yield Case(name, rmsnorm.forward_call(x, other, weight, eps=1e-6))
                if D <= WIDEST_BACKWARD:
                    call = rmsnorm.backward_call((x, weight, rstd), x, other)
                    yield Case(f"{name} backward", call)
    for dtype in (BF16, FP32):
        kind = NAMES[dtype]
        x, angles = _empty(2, 32, 512, 128, dtype), _empty(1, 512, 128, dtype)
        for inverse in (False, True):
            call = rope.rope_call(x, angles, angles, inverse=inverse)
            yield Case(f"rope {kind}{' backward' * inverse}", call)
        part = angles[..., :64]
        yield Case(f"rope half {kind}", rope.rope_call(x, part, part, inverse=False))
        wide = _empty(512, 2 * 14336, dtype)
        gate, up = wide.chunk(2, -1)
        yield Case(f"swiglu {kind}", swiglu.forward_call(gate, up))
        yield Case(f"swiglu {kind} backward", swiglu.backward_call(gate, up, gate.contiguous()))
        yield Case(f"relu2 {kind}", relu2.forward_call(wide))
        yield Case(f"relu2 {kind} backward", relu2.backward_call(wide, wide))
        logits, log = _empty(512, 128256, dtype), _empty(512, FP32)
        yield Case(f"kl {kind}", kl.forward_call(logits, logits))
        backward = kl.backward_call((logits, logits), (log, log), log)
        yield Case(f"kl {kind} backward", backward)


def _attention_cases() -> Iterator[Case]:
    for dtype, d in ((BF16, 64), (BF16, 80), (BF16, 128), (FP16, 128), (BF16, 256), (FP32, 128)):
        q, k = _empty(2, 32, 4096, d, dtype), _empty(2, 8, 4096, d, dtype)
        for window in (None, 1024):
            call = gqa_prefill.prefill_call(q, k, k, window=window, scale=None)
            name = f"gqa_prefill {d}{' window' * bool(window)} {NAMES[dtype]}"
            yield Case(name, call, INSTRUCTIONS[dtype])
    lengths = _empty(4, torch.int32)
    shapes = [(BF16, BF16, d, heads) for d, heads in ((64, 8), (128, 8), (128, 1), (256, 8))]
    others = [(FP16, FP16, 128, 8), (BF16, FP8, 128, 8), (BF16, FP8, 256, 8), (FP32, FP32, 128, 8)]
    for dtype, cache, d, heads in shapes + others:
        q, k = _empty(4, 32, d, dtype), _empty(4, heads, 4096, d, cache)
        name = f"gqa_decode {d} kv{heads} {NAMES[cache]}"
        wide = INSTRUCTIONS[dtype]
        instruction = wide and wide.removeprefix("wg")  # 16 rows of queries: see its triton.py
        for window in (None, 1024):
            calls = gqa_decode.decode_calls(q, (k, k), lengths, window=window, scale=None)
            yield Case(f"{name}{' window' * bool(window)}", calls[0], instruction)
        yield Case(f"{name} combine", calls[1])


def _product_cases() -> Iterator[Case]:
    F, D = 14336, 4096
    batches = (1, 32, 64, 128, 4096)
    for dtype, sizes in ((BF16, batches), (FP16, (1, 4096)), (FP8, batches), (FP32, (1,))):
        for T in sizes:
            x, weight = _empty(T, D, dtype), _empty(F, D, dtype)
            scales = (_empty(1, FP32), _empty(1, FP32)) if dtype == FP8 else None
            name = f"gemm {T} {NAMES[dtype]}"
            for fused in (False, True):
                calls = gemm.gemm_calls(x, weight, relu2=fused, scales=scales)
                yield Case(f"{name}{' relu2' * fused}", calls[0], INSTRUCTIONS[dtype])
            if dtype != FP8:
                call = swiglu.gemm_call(x, (weight, weight))
                yield Case(f"swiglu {name}", call, INSTRUCTIONS[dtype])
            calls = gemm.gemm_calls(_empty(T, F, dtype), _empty(1024, F, dtype), scales=scales)
            if len(calls) == 2:
                yield Case(f"{name} split", calls[0], INSTRUCTIONS[dtype])
                yield Case(f"{name} combine", calls[1])
        uneven = _empty(4096, 1040, dtype), _empty(F, 1040, dtype)
        calls = gemm.gemm_calls(*uneven, scales=None)
        yield Case(f"gemm uneven {NAMES[dtype]}", calls[0], INSTRUCTIONS[dtype])


def _unit_cases() -> Iterator[Case]:
    """Sizes of one, which Triton compiles in as constants; and as many KV heads as heads."""
    one, row, head = _empty(1, 1, BF16), _empty(1, FP32), _empty(1, 1, 1, 64, BF16)
    yield Case("rmsnorm 1x1", rmsnorm.forward_call(one, one, one[0], eps=1e-6))
    yield Case("rmsnorm 1x1 backward", rmsnorm.backward_call((one, one[0], row), one, one))
    yield Case("rope 1x1", rope.rope_call(head, head[0], head[0], inverse=True))
    yield Case("swiglu 1x1", swiglu.backward_call(one, one, one))
    yield Case("relu2 1x1", relu2.backward_call(one, one))
    yield Case("kl 1x1", kl.forward_call(one, one))
    yield Case("kl 1x1 backward", kl.backward_call((one, one), (row, row), row))
    yield Case("gemm 1x1", gemm.gemm_calls(one, one)[0])
    yield Case("gemm 1x1 split", gemm.gemm_calls(_empty(1, 4096, BF16), _empty(1, 4096, BF16))[1])
    yield Case("swiglu gemm 1x1", swiglu.gemm_call(one, (one, one)))
    many = _empty(1, 32, 4096, 64, BF16)
    for name, x in (("1x1", head), ("64 kv32", many)):
        for window in (None, 1):
            call = gqa_prefill.prefill_call(x, x, x, window=window, scale=None)
            yield Case(f"gqa_prefill {name}{' window' * bool(window)}", call)
            kv, lengths = (x, x), _empty(1, torch.int32)
            calls = gqa_decode.decode_calls(x[:, :, 0], kv, lengths, window=window, scale=None)
            yield Case(f"gqa_decode {name}{' window' * bool(window)}", calls[0])


def _empty(*shape_and_dtype: int | torch.dtype) -> torch.Tensor:
    *shape, dtype = shape_and_dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def source(call: Call) -> ASTSource:
    """The call as Triton's compiler takes it, specialised as its launcher would.

    Integers equal to 1 become constants; those divisible by 16, and pointers, say so.
    """
    constants = {**call.constants, **call.launch.tiles}
    signature, attributes = {}, {}
    for i, name in enumerate(call.kernel.arg_names):
        value = constants[name] if name in constants else call.arguments[name]
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
        elif isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned and name not in constants:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(call.kernel, signature, constants, attributes)


def compile_case(case: Case) -> Report:
    """Compile one case and read its machine code."""
    compiled = triton.compile(source(case.call), target=TARGET, options=case.call.options)
    shared = compiled.metadata.shared
    registers, spills = _registers(compiled.asm["cubin"])
    found = {" ".join(product) for product in PRODUCT.findall(compiled.asm["ptx"])}
    instruction = ", ".join(sorted(found)) or "-"
    failures = []
    if shared > SHARED_LIMIT:
        failures.append(f"uses {shared} bytes of shared memory, above {SHARED_LIMIT}")
    if spills:
        failures.append(f"spills registers ({spills} local loads and stores)")
    if case.instruction and case.instruction not in found:
        failures.append(f"multiplies without {case.instruction} (found {instruction})")
    return Report(case.name, shared, registers, spills, instruction, "; ".join(failures))


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers of machine code, and how often it spills them, by the tools of Triton's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        registers, stack = (int(_only(rf"{name}:(\d+)", usage)) for name in ("REG", "STACK"))
        code = _tool("nvdisasm", "-c", str(path)) if stack else ""
    return registers, len(re.findall(r"\b(?:STL|LDL)\b", code))


def _tool(name: str, *words: str) -> str:
    tool = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([tool, *words], capture_output=True, text=True, check=True).stdout


def _only(pattern: str, text: str) -> str:
    matches = re.findall(pattern, text)
    if len(matches) != 1:
        raise ValueError(f"{pattern} is found {len(matches)} times in:\n{text}")
    return matches[0]


def uncovered(all_cases: list[Case]) -> set[str]:
    """Rows of the launch table that no case compiles."""
    used = {id(case.call.launch) for case in all_cases}
    return {name for name, launch in LAUNCHES.items() if id(launch) not in used}


def _compile_named(name: str) -> Report:
    (case,) = (case for case in cases() if case.name == name)
    return compile_case(case)


def main() -> int:
    """Compile the cases named on the command line (all without names), print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="compile only cases whose name contains one")
    parts = parser.parse_args().parts
    everything = cases()
    names = [c.name for c in everything if not parts or any(p in c.name for p in parts)]
    print(f"{'kernel':44} {'shared':>8} {'regs':>5} {'spills':>6}  tensor cores")
    failed = 0
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for report in pool.map(_compile_named, names):
            failed += bool(report.failure)
            print(
                f"{report.name:44} {report.shared_bytes:8} {report.registers:5} "
                f"{report.spills:6}  {report.instruction:11} {report.failure}",
                flush=True,
            )
    missing = uncovered(everything)
    if missing:
        print(f"launches that no case compiles: {', '.join(sorted(missing))}")
    print(f"{len(names)} kernels, {failed} failed (triton {triton.__version__}, sm_90a)")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
