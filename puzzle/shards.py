"""Models that the ranks share: each holds some rows of every parameter, by `fully_shard`.

Alone, a process holds them whole, and everything here leaves a tensor as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from puzzle.device import current
from puzzle.ranks import here


def shard(whole: nn.Module, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Let the ranks share the parameters, layer by layer, and the rest of `whole` as one.

    A layer's parameters travel in `dtype`, gradients are summed in fp32 and the rows a rank holds
    keep their precision.
    """
    if here().world == 1:
        return
    here().join()
    mesh = init_device_mesh(current().type, (here().world,))  # a build for CUDA would assume GPUs
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        if any(True for _ in layer.parameters()):  # a layer may be empty
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(whole, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def release(whole: nn.Module) -> None:
    """Go back to the rows of this rank after a pass without gradients, which leaves them whole."""
    if isinstance(whole, FSDPModule):
        whole.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its rows; every rank asks at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Fill a tensor from one with all its rows, which every rank has."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(
            value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    tensor.copy_(value)
