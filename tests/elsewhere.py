"""A second device without a GPU: tensors that say they lie on it, and may not meet the CPU's.

The CPU computes them, so that what runs there gives the bits it gives here. An operation on tensors
of both devices is refused as a GPU refuses it, and products of matrices on the CPU are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "elsewhere"
MODULE = SimpleNamespace(  # what torch asks the module of a device
    _lazy_init=lambda: None,
    is_available=lambda: False,
    _is_in_bad_fork=lambda: True,  # it draws no numbers, so there is nothing to seed
    manual_seed_all=lambda seed: None,
    get_amp_supported_dtype=lambda: [torch.bfloat16],
)
torch.utils.rename_privateuse1_backend(NAME)
torch._register_device_module(NAME, MODULE)  # type: ignore[no-untyped-call]
DEVICE, CPU = torch.device(NAME, 0), torch.device("cpu")
aten = torch.ops.aten
FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray, torch.frombuffer}
MATMULS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
MEET = {aten.copy_.default, aten.index.Tensor, aten.index_put_.default}  # a GPU allows these
Kwargs = Mapping[str, Any] | None


class Elsewhere(torch.Tensor):
    """A tensor in the CPU's memory that says it lies on `DEVICE`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_subclass(cls, data, data.requires_grad)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def cpu(self, *args: Any) -> torch.Tensor:
        with torch._C._DisableTorchDispatch():
            return self.clone()

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        near = device is not None and device.type == CPU.type  # where torch sees it already
        return torch.Tensor.to(self.cpu() if near else self, dtype or self.dtype, copy=copy)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Kwargs = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _OutOfSight(TorchFunctionMode):
    """Places what torch makes where the other mode does not see it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Kwargs = None
    ) -> Any:
        asked = dict(kwargs or {})
        if func in FROM_PYTHON and torch.device(asked.get("device", CPU)).type == NAME:
            return func(*args, **asked | {"device": CPU}).to(DEVICE)
        made = func(*args, **asked)
        padded = func is torch._C._nn.pad_sequence and isinstance(args[0][0], Elsewhere)
        return Elsewhere(made) if padded else made


class InSight(TorchDispatchMode):
    """Sees what makes tensors on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.matmuls = 0  # on the CPU

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Kwargs = None
    ) -> Any:
        self.matmuls += func in MATMULS and not any(isinstance(each, Elsewhere) for each in args)
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [isinstance(tensor, Elsewhere) for tensor in tensors]
    lies = any(there)
    if (asked := kwargs.get("device")) is not None:
        lies = torch.device(asked).type == NAME
        kwargs["device"] = CPU if lies else asked
    elif lies and func not in MEET:
        strange = [
            tuple(t.shape) for t, is_there in zip(tensors, there) if t.dim() and not is_there
        ]
        if strange:
            raise RuntimeError(f"{func}: {strange} on the CPU, others on {DEVICE}")
    with torch._C._DisableTorchDispatch():
        made = func(*args, **kwargs)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, Elsewhere) else Elsewhere(tensor)

    return tree_map_only(torch.Tensor, placed, made) if lies else made


@contextmanager
def elsewhere() -> Iterator[InSight]:
    """`DEVICE` is a device meanwhile; yields the count of products of matrices on the CPU."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    # else a module that moves keeps its parameters, with other numbers inside: these stay in sight
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with InSight() as seen, _OutOfSight():
            yield seen
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
