"""Where a killed training goes on: parameters, the optimizer's moments, and the losses so far.

Every rank writes what it holds into a folder of the step, then the leading one writes which step
that was: a checkpoint is whole or not there. Another number of ranks can take it up as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from puzzle import checks
from puzzle.modules import Weights
from puzzle.ranks import here
from puzzle.run import Run
from puzzle.shards import local, put

EVERY_S = 30.0  # at least
SHARE = 20  # of the time that writing one takes, between two
MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}  # in a record -> in AdamW
Losses = list[dict[str, float]]  # of each step


@dataclass
class Checkpoints:
    """The last checkpoint of one training, in a folder of the run; `inputs` is what it reads."""

    run: Run
    folder: str
    inputs: str
    saved: float = field(default_factory=time.monotonic)
    took_s: float = 0.0

    @property
    def due(self) -> bool:
        """Whether the last one is old; the leading rank decides for all."""
        return here().agree(time.monotonic() - self.saved > max(EVERY_S, SHARE * self.took_s))

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
        """Write a checkpoint and drop the one before."""
        begin, tensors = time.monotonic(), {}
        for name, parameter in model.named_parameters():
            tensors[name] = parameter.detach()
            for suffix, moment in MOMENTS.items():
                tensors[f"{name}:{suffix}"] = optimizer.state[parameter][moment]
        self._write(self._step(len(losses)), tensors)
        if here().leads:
            self.run.save(f"{self.folder}/losses", losses, self.inputs)
            best = checks.best(losses)
            self._drop({self._step(len(losses)), *([self._best(best)] if best else [])})
        self.saved = time.monotonic()
        self.took_s = self.saved - begin

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Losses:
        """Take up the last checkpoint, if there is one; returns the losses of its steps."""
        if not self.run.fresh(f"{self.folder}/losses", self.inputs):
            return []
        losses: Losses = self.run.load(f"{self.folder}/losses")
        parts = self._read(self._step(len(losses)))
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

    def keep(self, model: nn.Module, step: int) -> None:
        """Remember the parameters after a step, the best so far."""
        self._write(self._best(step), {name: p.detach() for name, p in model.named_parameters()})

    def recall(self, model: nn.Module, step: int) -> None:
        """Put these parameters back."""
        parts = self._read(self._best(step))
        for name, parameter in model.named_parameters():
            put(parameter, _whole(parts, name))

    def clear(self) -> None:
        """Delete everything, the training being done."""
        self.run.forget(self.folder)

    def _step(self, step: int) -> str:
        return f"{self.folder}/step{step:07}"

    def _best(self, step: int) -> str:
        return f"{self.folder}/best{step:07}"

    def _write(self, folder: str, tensors: Weights) -> None:
        """Write what this rank holds of these tensors, and wait for the others."""
        name = f"{folder}/{here().rank:05}of{here().world:05}"
        held = {key: local(tensor) for key, tensor in tensors.items()}
        self.run.save_tensors(name, held, self.inputs)
        here().barrier()

    def _read(self, folder: str) -> list[Weights]:
        """What the ranks held: as many as now where they wrote it, else however many there were."""
        parts: dict[int, list[str]] = {}
        for name in self.run.names(f"{folder}/*"):
            if self.run.fresh(name, self.inputs):
                parts.setdefault(int(name.rpartition("of")[2]), []).append(name)
        whole = [world for world, names in parts.items() if len(names) == world]
        world = here().world if here().world in whole else whole[0]
        with torch.device("cpu"):  # beside the training a GPU may have no room for them
            return [self.run.load_tensors(name) for name in parts[world]]

    def _drop(self, kept: set[str]) -> None:
        """Delete all other folders of steps."""
        folders = {name.rpartition("/")[0] for name in self.run.names(f"{self.folder}/*/*")}
        self.run.forget(*folders - kept)


def _whole(parts: list[Weights], name: str) -> torch.Tensor:
    """A tensor whose rows the ranks share."""
    return torch.cat([part[name] for part in parts]) if len(parts) > 1 else parts[0][name]
