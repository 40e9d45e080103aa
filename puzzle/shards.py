"""Parameters that the ranks share: each holds some rows of each, by `fully_shard`.

Alone, a process holds them whole, and everything here leaves a tensor as it is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from puzzle.ranks import here


def shard(whole: nn.Module, layers: nn.ModuleList) -> None:
    """Let the ranks share the parameters: layer by layer, the rest of `whole` as one."""
    if here().world > 1:
        here().join()
        for layer in layers:
            fully_shard(layer)
        fully_shard(whole)


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
