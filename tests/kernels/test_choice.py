"""Which of kernel and reference runs, and the sentence that says so."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from puzzle.blocks.kernels.choice import FLOATS, FP8, Needs, _tensors, choose

OPERATIONS = ("gemm", "gqa_decode", "gqa_prefill", "kl", "relu2", "rmsnorm", "rope", "swiglu")
ARGUMENTS = {
    "gemm": ((2, 8), (4, 8)),
    "gqa_decode": ((2, 4, 8), (2, 2, 5, 8), (2, 2, 5, 8)),
    "gqa_prefill": ((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)),
    "kl": ((3, 7), (3, 7)),
    "relu2": ((3, 7),),
    "rmsnorm": ((3, 8), (8,)),
    "rope": ((2, 4, 5, 8), (1, 5, 8), (1, 5, 8)),
    "swiglu": ((3, 7), (3, 7)),
}


def _call(operation: str) -> tuple[torch.Tensor, str]:
    """The operation's result and its reason, on small CPU tensors."""
    module = importlib.import_module(f"puzzle.blocks.kernels.{operation}")
    tensors = [torch.randn(shape) for shape in ARGUMENTS[operation]]
    if operation == "gqa_decode":
        tensors.append(torch.tensor([5, 3]))
    return getattr(module, operation)(*tensors), module.why(*tensors)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cpu_runs_the_reference_and_says_why(operation: str) -> None:
    result, why = _call(operation)
    assert result.isfinite().all()
    assert why == (
        f"{operation} runs the torch reference: its tensors are on cpu, and Triton kernels need "
        "CUDA"
    )


def test_no_operation_loads_triton_before_it_is_chosen() -> None:
    code = "import sys\n" + "".join(f"import puzzle.blocks.kernels.{name}\n" for name in OPERATIONS)
    code += "assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_kernel_cannot_do_is_named() -> None:
    x = torch.zeros(2, 3)
    trained = torch.zeros(2, 3, requires_grad=True)
    forward_only, both = Needs(backward=False), Needs(backward=True)
    assert _tensors((x, x.to(FP8)), both) == "the kernel does not read float8_e4m3fn"
    assert _tensors((x, x.to(FP8)), Needs(backward=True, dtypes=(*FLOATS, FP8))) == ""
    assert _tensors((x, trained), forward_only) == (
        "gradients are asked for, and the kernel has no backward pass"
    )
    assert _tensors((x, trained), both) == ""
    with torch.no_grad():
        assert _tensors((x, trained), forward_only) == ""
    assert _tensors((x, x.to("meta")), both) == "its tensors are on cpu and meta"
    assert _tensors((x[:0], x), both) == "a tensor is empty"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_runs_the_kernel_unless_there_is_an_obstacle() -> None:
    x = torch.zeros(2, 3, device="cuda")
    assert choose("kl", (x, x), Needs(backward=True)).triton
    chosen = choose("kl", (x, x), Needs(backward=True), obstacle="it rains")
    assert chosen.reason == "kl runs the torch reference: it rains"
    assert not chosen.triton
