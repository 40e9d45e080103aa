"""A kernel launch as a value, and the one table of tiles, warps and stages.

The launchers in every `triton.py` build a `Call`; `run` launches it, and
`benchmarks/gpu/compile.py` compiles the same value ahead of time on a machine without a GPU, so
that what is compiled is what is launched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton import language as tl

SMS = 132  # streaming multiprocessors of an H100; elsewhere the split is a little off, not wrong
WIDEST_ROW = 16384
PRECISION = "tf32x3"  # of fp32 products, which only fp32 operands heed: three tf32 products, 1e-6
INTERPRETED = bool(triton.knobs.runtime.interpret)
TYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float8_e4m3fn: tl.float8e4nv,
}


@dataclass(frozen=True)
class Launch:
    """Tile sizes (the kernel's constants), warps, and stages of the software pipeline."""

    tiles: Mapping[str, int]
    warps: int
    stages: int = 1


LAUNCHES: dict[str, Launch] = {
    "rmsnorm-1024": Launch({"BLOCK": 1024}, warps=4),
    "rmsnorm-2048": Launch({"BLOCK": 2048}, warps=4),
    "rmsnorm-4096": Launch({"BLOCK": 4096}, warps=8),
    "rmsnorm-8192": Launch({"BLOCK": 8192}, warps=16),
    "rmsnorm-16384": Launch({"BLOCK": 16384}, warps=32),
    "rope": Launch({"BLOCK_H": 16}, warps=4),
    "swiglu": Launch({"BLOCK": 1024}, warps=4),
    "relu2": Launch({"BLOCK": 1024}, warps=4),
    "kl": Launch({"BLOCK": 4096}, warps=8),
    "gqa_prefill-64": Launch({"BLOCK_T": 128, "BLOCK_S": 128}, warps=8, stages=3),
    "gqa_prefill-128": Launch({"BLOCK_T": 128, "BLOCK_S": 128}, warps=8, stages=2),
    "gqa_prefill-256": Launch({"BLOCK_T": 128, "BLOCK_S": 32}, warps=8, stages=3),
    "gqa_prefill-fp32": Launch({"BLOCK_T": 32, "BLOCK_S": 16}, warps=8, stages=2),
    "gqa_decode": Launch({"BLOCK_S": 64}, warps=4, stages=3),
    "gqa_decode-fp32": Launch({"BLOCK_S": 32}, warps=4, stages=2),
    "gqa_decode-combine": Launch({}, warps=4),
    "gemm-16": Launch({"BLOCK_F": 64, "BLOCK_T": 16, "BLOCK_D": 256}, warps=4, stages=4),
    "gemm-32": Launch({"BLOCK_F": 64, "BLOCK_T": 32, "BLOCK_D": 256}, warps=4, stages=3),
    "gemm-64": Launch({"BLOCK_F": 64, "BLOCK_T": 64, "BLOCK_D": 128}, warps=4, stages=4),
    "gemm-128": Launch({"BLOCK_F": 128, "BLOCK_T": 128, "BLOCK_D": 64}, warps=8, stages=4),
    "gemm-large": Launch({"BLOCK_F": 128, "BLOCK_T": 256, "BLOCK_D": 64}, warps=8, stages=4),
    "gemm-fp8-16": Launch({"BLOCK_F": 64, "BLOCK_T": 16, "BLOCK_D": 256}, warps=4, stages=5),
    "gemm-fp8-32": Launch({"BLOCK_F": 64, "BLOCK_T": 32, "BLOCK_D": 256}, warps=4, stages=4),
    "gemm-fp8-64": Launch({"BLOCK_F": 64, "BLOCK_T": 64, "BLOCK_D": 256}, warps=4, stages=4),
    "gemm-fp8-128": Launch({"BLOCK_F": 128, "BLOCK_T": 128, "BLOCK_D": 128}, warps=8, stages=4),
    "gemm-fp8-large": Launch({"BLOCK_F": 128, "BLOCK_T": 256, "BLOCK_D": 128}, warps=8, stages=4),
    "gemm-fp32": Launch({"BLOCK_F": 64, "BLOCK_T": 32, "BLOCK_D": 32}, warps=4, stages=2),
    "gemm-combine": Launch({"BLOCK": 1024}, warps=4),
    "swiglu-gemm-16": Launch({"BLOCK_F": 64, "BLOCK_T": 16, "BLOCK_D": 128}, warps=4, stages=5),
    "swiglu-gemm-64": Launch({"BLOCK_F": 64, "BLOCK_T": 64, "BLOCK_D": 128}, warps=4, stages=4),
    "swiglu-gemm-large": Launch({"BLOCK_F": 128, "BLOCK_T": 128, "BLOCK_D": 64}, warps=8, stages=4),
    "swiglu-gemm-fp32": Launch({"BLOCK_F": 32, "BLOCK_T": 32, "BLOCK_D": 32}, warps=4, stages=2),
}


@dataclass(frozen=True)
class Call:
    """One launch of one kernel: everything `kernel[grid](...)` is given.

    `arguments` are what the kernel reads at run time (tensors, integers, floats; None for an
    optional tensor that is absent), `constants` what it is compiled for beside its tiles.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    launch: Launch

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options; fused multiply-add is said, since triton 3.10 turns it off."""
        options = {"num_warps": self.launch.warps, "num_stages": self.launch.stages}
        return options if INTERPRETED else options | {"enable_fp_fusion": True}

    def run(self) -> Mapping[str, Any]:
        """Launch on the device of the call's tensors; return the arguments, outputs among them."""
        tensor = next(a for a in self.arguments.values() if isinstance(a, torch.Tensor))
        with torch.cuda.device_of(tensor):
            self.kernel[self.grid](
                **self.arguments, **self.constants, **self.launch.tiles, **self.options
            )
        return self.arguments


def run(calls: list[Call]) -> Mapping[str, Any]:
    """Launch one call after another; return the last one's arguments."""
    return [call.run() for call in calls][-1]


def row_launch(kernel: str, columns: int) -> Launch:
    """The launch of a kernel that holds a whole row, the smallest tile that fits.

    Raises:
        ValueError: when the row is wider than the widest tile.
    """
    if columns > WIDEST_ROW:
        raise ValueError(f"{kernel} holds rows of at most {WIDEST_ROW} columns, not {columns}")
    return LAUNCHES[f"{kernel}-{max(1024, triton.next_power_of_2(columns))}"]


def strides(prefix: str, tensor: torch.Tensor, axes: str) -> dict[str, int]:
    """Strides of the leading axes as kernel arguments: `q_stride_b`, `q_stride_h`, ..."""
    return {f"{prefix}_stride_{axis}": tensor.stride(i) for i, axis in enumerate(axes)}


def dot_type(dtype: torch.dtype) -> Any:
    """The type in which a kernel multiplies matrices of `dtype`.

    Its own, except in the interpreter, whose bf16 arithmetic is silently wrong: fp32 there.
    """
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else TYPES[dtype]


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as a matrix [rows, columns] whose columns are contiguous; a view where possible."""
    matrix = tensor.reshape(-1, tensor.shape[-1])
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()
