"""Where a killed training goes on: parameters, the optimizer's moments, and the losses so far.

Every rank writes what it holds into the folder of a step, then the leading one writes which step
that was: a checkpoint is whole or not there. Another number of ranks can take it up as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from puzzle.modules import Weights
from puzzle.ranks import here
from puzzle.run import Run
from puzzle.shards import local, put

EVERY_S = 30.0
MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}  # in a record -> in AdamW
Losses = list[dict[str, float]]  # of each step


@dataclass
class Checkpoints:
    """The last checkpoint of one training, in a folder of the run; `inputs` is what it reads."""

    run: Run
    folder: str
    inputs: str
    saved: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether the last one is old; the leading rank decides for all."""
        return here().agree(time.monotonic() - self.saved > EVERY_S)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
        """Write a checkpoint and drop the one before."""
        tensors = {}
        for name, parameter in model.named_parameters():
            tensors[name] = local(parameter.detach())
            for suffix, moment in MOMENTS.items():
                tensors[f"{name}:{suffix}"] = local(optimizer.state[parameter][moment])
        step = self._step(losses)
        self.run.save_tensors(f"{step}/{here().rank}of{here().world}", tensors, self.inputs)
        here().barrier()
        if here().leads:
            self.run.save(f"{self.folder}/losses", losses, self.inputs)
            steps = {name.rpartition("/")[0] for name in self.run.names(f"{self.folder}/*/*")}
            self.run.forget(*steps - {step})
        self.saved = time.monotonic()

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Losses:
        """Take up the last checkpoint, if there is one; returns the losses of its steps."""
        if not self.run.fresh(f"{self.folder}/losses", self.inputs):
            return []
        losses: Losses = self.run.load(f"{self.folder}/losses")
        parts = [self.run.load_tensors(name) for name in self.run.names(f"{self._step(losses)}/*")]
        for name, parameter in model.named_parameters():
            put(parameter, _whole(parts, name))
            state: dict[str, Any] = {
                "step": torch.tensor(float(len(losses)), device=parameter.device)
            }
            for suffix, moment in MOMENTS.items():
                state[moment] = torch.zeros_like(parameter)
                put(state[moment], _whole(parts, f"{name}:{suffix}"))
            optimizer.state[parameter] = state
        return losses

    def clear(self) -> None:
        """Delete it, the training being done."""
        self.run.forget(self.folder)

    def _step(self, losses: Losses) -> str:
        return f"{self.folder}/step{len(losses):07}"


def _whole(parts: list[Weights], name: str) -> torch.Tensor:
    """A tensor whose rows the ranks share."""
    return torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
