"""Kernel tests run natively on CUDA, else in Triton's interpreter, in a process of their own.

Triton decides at import whether it interprets, and the rest of the suite imports it through
transformers. So without a GPU the files that launch kernels are collected only under
TRITON_INTERPRET=1; `test_in_interpreter.py` runs them that way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
OPERATIONS = ("gemm", "gqa_decode", "gqa_prefill", "kl", "relu2", "rmsnorm", "rope", "swiglu")
LAUNCHING = [f"test_{name}.py" for name in (*OPERATIONS, "launch")]
OTHERS = ["test_benchmark.py", "test_choice.py", "test_compile.py"]
RUNNER = "test_in_interpreter.py"
collect_ignore = [RUNNER] if CUDA else [RUNNER, *OTHERS] if INTERPRETED else LAUNCHING
# the interpreter truncates to bf16, the hardware rounds: a whole unit in the last place
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

if CUDA:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Every tensor made by torch.empty is NaN; every seed is the same."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def random() -> Callable[..., torch.Tensor]:
    """`random(*shape, dtype=..., scale=...)`: a normal tensor inside a buffer of NaN.

    Reading one element beside it, or before or after any row of it, spoils the result.
    """

    def make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        fp8 = dtype == torch.float8_e4m3fn
        buffer = torch.full([n + 2 for n in shape], torch.nan, device=DEVICE)
        inner = tuple(slice(1, n + 1) for n in shape)
        buffer[inner] = torch.randn(shape, device=DEVICE) * scale
        return (buffer.half() if fp8 else buffer).to(dtype)[inner]

    return make


@pytest.fixture
def agree() -> Callable[..., None]:
    """`agree(got, want)`: same shape, type and, up to the type's tolerance, values."""

    def check(got: torch.Tensor, want: torch.Tensor, *, factor: float = 1.0) -> None:
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        tolerance = factor * TOLERANCE[want.dtype]
        size = float(want.abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(
            got.float(), want.float(), rtol=tolerance, atol=tolerance * min(1.0, size)
        )

    return check


@pytest.fixture
def results() -> Callable[..., list[torch.Tensor]]:
    """`results(function, inputs, seeds)`: its outputs, then the inputs' gradients.

    `seeds` are the gradients of the outputs, one each.
    """

    def compute(
        function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
        inputs: list[torch.Tensor],
        seeds: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, seeds)
        found = [output.detach() for output in outputs]
        return found + [leaf.grad for leaf in leaves if leaf.grad is not None]

    return compute
