"""Ranks: which layers are this process's work, and where processes meet.

Started plainly there is one rank. Under torchrun, on one machine or on several that share a file
system, each rank owns a range of layers and they meet on disk, with one barrier a stage. A rank
that dies is replaced by running the same command again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

Made = TypeVar("Made")
PATIENCE = timedelta(days=30)  # a barrier waits as long as the longest stage of another rank
_done: list[Any] = []  # the last exchange; see `mean`


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`.

    >>> [list(Ranks(rank, 3).mine(8)) for rank in range(3)]
    [[0, 1], [2, 3, 4], [5, 6, 7]]
    """

    rank: int = 0
    world: int = 1
    local: int = 0  # its number among those of its machine

    @property
    def leads(self) -> bool:
        """Whether this rank does what only one may do."""
        return self.rank == 0

    @property
    def last(self) -> bool:
        """Whether this rank owns the last layers."""
        return self.rank == self.world - 1

    def mine(self, layers: int) -> range:
        """The layers of this rank: contiguous, as even as can be."""
        return range(self.rank * layers // self.world, (self.rank + 1) * layers // self.world)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.agree(True)

    def first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns; the leading rank makes it, then the others, from its records."""
        if not self.leads:
            self.barrier()
        made = make()
        if self.leads:
            self.barrier()
        return made

    def join(self) -> None:
        """Be one of the ranks that exchange data from now on."""
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backends, timeout=PATIENCE)

    def agree(self, said: bool) -> bool:
        """What the leading rank said."""
        return bool(self._from_leader(float(said))) if self.world > 1 else said

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The means of numbers over the ranks, in the order of their names."""
        if self.world == 1:
            return dict(sorted(values.items()))
        import torch
        import torch.distributed as dist

        self.join()
        names = sorted(values)
        sums = torch.tensor([values[name] for name in names], dtype=torch.float64, device="cpu")
        work = dist.all_reduce(sums, async_op=True)
        work.wait()
        _done[:] = [work, sums]  # were gloo's thread the last to hold it, an exit would abort
        return dict(zip(names, (sums / self.world).tolist()))

    def _from_leader(self, value: float) -> float:
        return self.mean({"": value * self.leads * self.world})[""]


def here() -> Ranks:
    """The rank that torchrun gave this process; the only one where nothing did."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return Ranks(*(int(os.environ.get(name, alone)) for name, alone in names.items()))
