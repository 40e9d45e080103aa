"""Study: how one layer learns from streams: float32 masters, AdamW, a rate that rises and falls.

So do the blocks of the library, from the parent's streams (distill.py), and the layers of a child,
from its own (mend.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from puzzle.config import Local
from puzzle.device import fast_products, multiplied_in, shuffled
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.modules import Weights

WARMUP = 0.05  # of the steps


class Study:
    """A layer in training, of float32 copies of some weights."""

    def __init__(
        self,
        built: Callable[[Weights], PuzzleLayer],
        weights: Weights,
        options: Local,
        dtype: torch.dtype,
        steps: int,
    ) -> None:
        """Products are of `dtype` unless the options name another; the rate is over in `steps`."""
        masters = {name: weight.float().clone() for name, weight in weights.items()}
        self.module, self.steps = built(masters).requires_grad_(), steps
        self.learning_rate = options.learning_rate
        self.dtype = getattr(torch, options.dtype) if options.dtype else dtype
        self.optimizer = torch.optim.AdamW(self.module.parameters(), weight_decay=0.0)

    def learn(self, loss: Callable[[PuzzleLayer], torch.Tensor], step: int) -> None:
        """One step, of that number, down a loss of the module."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate(step, self.steps)
        with fast_products():
            with multiplied_in(self.dtype):
                value = loss(self.module)
            value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self, dtype: torch.dtype) -> Weights:
        """A copy of what it is now."""
        state = self.module.state_dict()
        return {name: weight.detach().to(dtype, copy=True) for name, weight in state.items()}


def batches(count: int, size: int) -> Iterator[torch.Tensor]:
    """Which of so many sequences make a batch, without end, reshuffled at every epoch."""
    size = min(count, size)
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < size:
            order = torch.cat([order, shuffled(count, generator)])
        yield order[:size]
        order = order[size:]


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
