"""The matrix product of a linear layer in Triton, for a prompt's tokens and for a decode batch.

Legend: T tokens, D inputs, F outputs, P splits of D.
The weight is the left operand, so that a decode batch of 1 to 64 tokens is the narrow side of the
tensor-core instruction (8 columns or more) and not its 64 rows.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import torch
import triton
from triton import language as tl

from ..launch import LAUNCHES, PRECISION, SMS, Call, Launch, dot_type, rows, run

GROUP = 8  # tiles of the weight that share the activations in L2


@triton.jit
def tile_of(program, F, T, BLOCK_F: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr):
    """The tile (f, t) of a program, ordered so that programs running together share operands."""
    f_tiles, t_tiles = tl.cdiv(F, BLOCK_F), tl.cdiv(T, BLOCK_T)
    first = program // (GROUP * t_tiles) * GROUP
    members = tl.minimum(f_tiles - first, GROUP)
    inside = program % (GROUP * t_tiles)
    return first + inside % members, inside // members


@triton.jit
def gemm_kernel(
    x_ptr, w_ptr, x_scale_ptr, w_scale_ptr, y_ptr,
    x_stride, w_stride, x_scale_stride, w_scale_stride, T, F, D,
    SCALED: tl.constexpr, RELU2: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile_f, tile_t = tile_of(tl.program_id(0), F, T, BLOCK_F, BLOCK_T, GROUP)
    split = tl.program_id(1)
    f = tile_f * BLOCK_F + tl.arange(0, BLOCK_F)
    t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_D)
    # rows past the end wrap around: read without a mask, never stored
    w_tile = w_ptr + (f % F).to(tl.int64)[:, None] * w_stride + channel[None, :]
    x_tile = x_ptr + (t % T).to(tl.int64)[:, None] * x_stride + channel[None, :]
    acc = tl.zeros([BLOCK_F, BLOCK_T], tl.float32)
    share = tl.cdiv(tl.cdiv(D, BLOCK_D), SPLITS) * BLOCK_D
    start = split * share
    for d in range(start, tl.minimum(D, start + share), BLOCK_D):
        if EVEN:
            w = tl.load(w_tile + d)
            x = tl.load(x_tile + d)
        else:
            inside = channel[None, :] < D - d
            w = tl.load(w_tile + d, inside, other=0.0)
            x = tl.load(x_tile + d, inside, other=0.0)
        acc = tl.dot(w.to(DOT), tl.trans(x.to(DOT)), acc, input_precision=PRECISION)
    if SCALED:
        w_scale = tl.load(w_scale_ptr + f * w_scale_stride, f < F, other=0.0)
        x_scale = tl.load(x_scale_ptr + t * x_scale_stride, t < T, other=0.0)
        acc = acc * w_scale[:, None] * x_scale[None, :]
    if RELU2:
        acc = tl.maximum(acc, 0.0)
        acc = acc * acc
    y_tile = y_ptr + (split * T + t).to(tl.int64)[None, :] * F + f[:, None]
    tl.store(y_tile, acc.to(y_ptr.dtype.element_ty), (f[:, None] < F) & (t[None, :] < T))


@triton.jit
def combine_kernel(
    part_ptr, y_ptr, size, SPLITS: tl.constexpr, RELU2: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(part_ptr + split * tl.cast(size, tl.int64) + i, i < size, other=0.0)
    if RELU2:
        y = tl.maximum(y, 0.0)
        y = y * y
    tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), i < size)


def gemm_launch(T: int, F: int, dtype: torch.dtype) -> Launch:
    """The launch for T tokens and F outputs: the largest tile that fills the device."""
    if dtype == torch.float32:
        return LAUNCHES["gemm-fp32"]
    kind = "gemm-fp8" if dtype == torch.float8_e4m3fn else "gemm"
    if T > 128 and _tiles(LAUNCHES[f"{kind}-large"], T, F) >= SMS:
        return LAUNCHES[f"{kind}-large"]
    smallest = (size for size in (16, 32, 64) if size >= T)
    return LAUNCHES[f"{kind}-{next(smallest, 128)}"]


def split_count(launch: Launch, T: int, F: int, D: int) -> int:
    """Splits of D that give every multiprocessor a program, each at least four steps long."""
    tiles = _tiles(launch, T, F)
    steps = triton.cdiv(D, launch.tiles["BLOCK_D"])
    return 1 if tiles >= SMS else max(1, min(2 * SMS // tiles, steps // 4, 8))


def _tiles(launch: Launch, T: int, F: int) -> int:
    return triton.cdiv(F, launch.tiles["BLOCK_F"]) * triton.cdiv(T, launch.tiles["BLOCK_T"])


def gemm_calls(
    x_TD: torch.Tensor,
    weight_FD: torch.Tensor,
    *,
    relu2: bool = False,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    launch: Launch | None = None,
) -> list[Call]:
    """The product and, when D is split, the sum of the parts; the last call writes `y`."""
    (T, D), F = x_TD.shape, weight_FD.shape[0]
    launch = launch or gemm_launch(T, F, x_TD.dtype)
    splits = split_count(launch, T, F, D)
    kind = torch.bfloat16 if x_TD.dtype == torch.float8_e4m3fn else x_TD.dtype
    y = x_TD.new_empty(splits, T, F, dtype=torch.float32 if splits > 1 else kind)
    x_scale, w_scale = (None, None) if scales is None else scales
    arguments = {
        "x_ptr": x_TD,
        "w_ptr": weight_FD,
        "x_scale_ptr": x_scale,
        "w_scale_ptr": w_scale,
        "y_ptr": y,
        "x_stride": x_TD.stride(0),
        "w_stride": weight_FD.stride(0),
        "x_scale_stride": _step(x_scale),
        "w_scale_stride": _step(w_scale),
        "T": T,
        "F": F,
        "D": D,
    }
    constants = {
        "SCALED": scales is not None,
        "RELU2": relu2 and splits == 1,
        "SPLITS": splits,
        "EVEN": D % launch.tiles["BLOCK_D"] == 0,
        "DOT": dot_type(x_TD.dtype),
        "PRECISION": PRECISION,
        "GROUP": GROUP,
    }
    grid = (_tiles(launch, T, F), splits)
    calls = [Call(gemm_kernel, grid, arguments, constants, launch)]
    if splits > 1:
        calls.append(_combine_call(y, kind, relu2=relu2))
    return calls


def _combine_call(parts_PTF: torch.Tensor, dtype: torch.dtype, *, relu2: bool) -> Call:
    launch = LAUNCHES["gemm-combine"]
    y = parts_PTF.new_empty(parts_PTF.shape[1:], dtype=dtype)
    arguments = {"part_ptr": parts_PTF, "y_ptr": y, "size": y.numel()}
    constants = {"SPLITS": parts_PTF.shape[0], "RELU2": relu2}
    grid = (triton.cdiv(y.numel(), launch.tiles["BLOCK"]),)
    return Call(combine_kernel, grid, arguments, constants, launch)


def _step(scale: torch.Tensor | None) -> int:
    """From one row's scale to the next: 0 where one scale serves all rows."""
    return 0 if scale is None or scale.numel() == 1 else 1


def gemm(
    x: torch.Tensor,
    weight_FD: torch.Tensor,
    *,
    relu2: bool = False,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """As reference.gemm."""
    flat = None if scales is None else (scales[0].contiguous(), scales[1].contiguous())
    calls = gemm_calls(rows(x), rows(weight_FD), relu2=relu2, scales=flat)
    return run(calls)["y_ptr"].view(*x.shape[:-1], weight_FD.shape[0])
