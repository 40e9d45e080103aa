"""Where arithmetic runs: on a GPU where torch sees one, else on the CPU.

No function is told. All that is made or read while a command runs lies on torch's default device,
which `placed` sets for so long. `CUDA_VISIBLE_DEVICES=` hides the GPUs of a machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from puzzle.errors import PuzzleError
from puzzle.ranks import here

Params = ParamSpec("Params")
Made = TypeVar("Made")
ONEDNN: Any = torch.backends.mkldnn  # its types lack what multiplies matrices


def best() -> torch.device:
    """This rank's own GPU, or the CPU where there are none.

    Raises:
        PuzzleError: there are more ranks than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if here().local >= count:
        raise PuzzleError(
            f"rank {here().local} of this machine has no GPU of its own, torch sees {count}; "
            f"start {count} with torchrun --nproc-per-node, or hide them: CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cuda", here().local)


def placed(command: Callable[Params, Made]) -> Callable[Params, Made]:
    """The command, run on the best device; that this is out of memory is a PuzzleError."""

    @functools.wraps(command)
    def run(*args: Params.args, **kwargs: Params.kwargs) -> Made:
        device = best()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            with exact_onednn(), nullcontext() if device == current() else device:
                return command(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise PuzzleError(
                f"out of memory on {device} ({str(error).splitlines()[0]}); nothing done so far is "
                "lost: run the same command with --set ceiling.memory below what the GPU has, on a "
                "larger one, or on the CPU with CUDA_VISIBLE_DEVICES="
            ) from None

    return run


def current() -> torch.device:
    """Where tensors are made now."""
    return torch.get_default_device()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside depends on the seed alone; outside nothing changes."""
    with torch.random.fork_rng([current()] if current().type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def at_once(few: int) -> int:
    """How many of what a CPU takes a few of at a time: a GPU idles with so few."""
    return few * 8 if current().type == "cuda" else few


@contextmanager
def fast_products() -> Iterator[None]:
    """Within, a GPU multiplies float32 matrices in TF32: for gradients, which it does not hurt."""
    with _permitted(torch.backends.cuda.matmul, "tf32"):
        yield


@contextmanager
def exact_onednn() -> Iterator[None]:
    """Within, a CPU multiplies float32 matrices by oneDNN where that is as exact as MKL.

    MKL has no AVX-512 for AMD's processors, oneDNN has: twice the speed. torch asks it only where
    products may be rounded to bfloat16, which oneDNN does on processors with matrix instructions.
    """
    with _permitted(ONEDNN.matmul, "bf16") if onednn_is_exact() else nullcontext():
        yield


@functools.cache
def onednn_is_exact() -> bool:
    """Whether its product of float32 matrices has an error of float32's rounding."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=draw, device="cpu") for _ in range(2))
    wanted = left.double() @ right.double()
    with _permitted(ONEDNN.matmul, "bf16"):
        return bool((left @ right - wanted).norm() < 1e-5 * wanted.norm())


@contextmanager
def _permitted(matmul: Any, precision: str) -> Iterator[None]:
    """Within, this precision may stand for float32 in one of torch's ways to multiply matrices."""
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def multiplied_in(dtype: torch.dtype) -> torch.autocast:
    """Within, matrices are multiplied in this dtype, whatever theirs is; float32 leaves theirs."""
    return torch.autocast(current().type, dtype, enabled=dtype != torch.float32)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, as far as torch says."""
    able = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # newer than torch 2.11
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform random numbers, the same on every device."""
    return torch.rand(shape, generator=generator, device="cpu").to(current())


def shuffled(count: int, generator: torch.Generator) -> torch.Tensor:
    """The numbers below `count` in a random order, the same on every device."""
    return torch.randperm(count, generator=generator, device="cpu").to(current())
