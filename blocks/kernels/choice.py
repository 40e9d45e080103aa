"""Who computes an operation, the Triton kernel or the torch reference, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = torch.float8_e4m3fn
OLDEST = (8, 0)  # the first NVIDIA generation with bf16 and asynchronous copies


@dataclass(frozen=True)
class Choice:
    """Whether the Triton kernel runs, and the sentence that says why."""

    triton: bool
    reason: str


@dataclass(frozen=True)
class Needs:
    """What the kernel of one operation asks of its tensors, beyond a CUDA device."""

    backward: bool
    dtypes: tuple[torch.dtype, ...] = FLOATS


def choose(
    operation: str, tensors: tuple[torch.Tensor, ...], needs: Needs, *, obstacle: str = ""
) -> Choice:
    """Choose for `operation` on `tensors`; `obstacle` is a reason of the operation's own."""
    found = _device(tensors[0].device) or _tensors(tensors, needs) or obstacle
    if found:
        return Choice(False, f"{operation} runs the torch reference: {found}")
    major, minor = torch.cuda.get_device_capability(tensors[0].device)
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return Choice(True, f"{operation} runs the Triton kernel: {dtype} on sm_{major}{minor}")


@cache
def _device(device: torch.device) -> str:
    """What keeps Triton from running on a device; empty when nothing does."""
    if device.type != "cuda":
        return f"its tensors are on {device.type}, and Triton kernels need CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"the device is sm_{capability[0]}{capability[1]}, and the kernels need sm_80"
    return ""


def _tensors(tensors: tuple[torch.Tensor, ...], needs: Needs) -> str:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        return f"its tensors are on {' and '.join(sorted(devices))}"
    for tensor in tensors:
        if tensor.dtype not in needs.dtypes:
            return f"the kernel does not read {str(tensor.dtype).removeprefix('torch.')}"
        if not tensor.numel():
            return "a tensor is empty"
    if not needs.backward and needs_gradient(tensors):
        return "gradients are asked for, and the kernel has no backward pass"
    return ""


def needs_gradient(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether autograd will ask for the gradient of any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
