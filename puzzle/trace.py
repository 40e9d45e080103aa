"""Trace: the two sweeps over the layers, the only stage that needs them in order.

Forwards, the residual streams h_0 .. h_L of the calibration and the scoring split. Backwards, on
the scoring split, K samples of the Fisher gradients g_L .. g_1: labels y_t are drawn independently
at every position from the parent's own next-token distribution, and
`g_i = d/dh_i sum_t log p(y_t)`. One parent layer is in memory at a time.

Ranks form a pipeline: each sweeps its own layers and waits on disk for what enters them. The last
turns around while the others go on with the calibration split.

Legend: S sequences, T tokens, D hidden, V vocabulary, K samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from puzzle import ranks, records
from puzzle.corpus import digest
from puzzle.parent import Parent
from puzzle.progress import track
from puzzle.run import Run, fingerprint

BATCH_TOKENS = 4096  # of one forward pass; bounds the activations in memory
HEAD_BYTES = 256 * 2**20  # of one batch's logits
POLL_S = 0.02


def trace(
    run: Run, parent: Parent, splits: dict[str, torch.Tensor], *, samples: int, seed: int
) -> str:
    """Write every missing stream and gradient of this rank's layers.

    Returns the fingerprint of the gradients, which `trace_print` foretells.

    Args:
        splits: token ids [S, T] by split; `scoring` has its gradients traced too.
        samples: K, the number of label draws of the Fisher gradients.
    """
    sweeps, here = _Sweeps(run, parent), ranks.here()
    prints = {split: _hidden_print(parent, tokens) for split, tokens in splits.items()}
    scoring = prints.pop("scoring")
    gradients = trace_print(parent, splits["scoring"], samples=samples, seed=seed)
    sweeps.up("scoring", splits["scoring"], scoring)
    if here.last:
        sweeps.turn(samples, seed, scoring, gradients)
        sweeps.down(scoring, gradients)
    for split, inputs in prints.items():
        sweeps.up(split, splits[split], inputs)
    if not here.last:
        sweeps.down(scoring, gradients)
    return gradients


def trace_print(parent: Parent, scoring: torch.Tensor, *, samples: int, seed: int) -> str:
    """Fingerprint of the scoring split's streams and gradients."""
    return fingerprint("gradients", _hidden_print(parent, scoring), samples, seed)


def _hidden_print(parent: Parent, tokens: torch.Tensor) -> str:
    return fingerprint("hidden", parent.fingerprint, digest(tokens))


@dataclass(frozen=True)
class _Sweeps:
    """One model swept over this rank's layers."""

    run: Run
    parent: Parent

    def up(self, split: str, tokens: torch.Tensor, inputs: str) -> None:
        """The streams that leave this rank's layers, from the one that enters them."""
        mine = ranks.here().mine(self.parent.shape.layers)
        if mine.start == 0 and not self.run.fresh(records.hidden(split, 0), inputs):
            embedded = {"h": self.parent.embed(tokens)}
            self.run.save_tensors(records.hidden(split, 0), embedded, inputs)
        for layer in track(mine, f"trace {split}"):
            if not self.run.fresh(records.hidden(split, layer + 1), inputs):
                enter = self._await(records.hidden(split, layer), inputs)["h"]
                leave = {"h": forward(self.parent, layer, enter)}
                self.run.save_tensors(records.hidden(split, layer + 1), leave, inputs)

    def turn(self, samples: int, seed: int, entered: str, inputs: str) -> None:
        """The gradients at the head."""
        last = self.parent.shape.layers
        if not self.run.fresh(records.gradient(last), inputs):
            hidden = self._await(records.hidden("scoring", last), entered)["h"]
            gradient = {"g": head_gradients(self.parent, hidden, samples, seed)}
            self.run.save_tensors(records.gradient(last), gradient, inputs)

    def down(self, entered: str, inputs: str) -> None:
        """The gradients that leave this rank's layers downwards; none is wanted below layer 0."""
        mine = ranks.here().mine(self.parent.shape.layers)
        for layer in track([layer for layer in reversed(mine) if layer], "trace gradients"):
            if not self.run.fresh(records.gradient(layer), inputs):
                above = self._await(records.gradient(layer + 1), inputs)["g"]
                hidden = self._await(records.hidden("scoring", layer), entered)["h"]
                gradient = {"g": backward(self.parent, layer, hidden, above)}
                self.run.save_tensors(records.gradient(layer), gradient, inputs)

    def _await(self, name: str, inputs: str) -> dict[str, torch.Tensor]:
        """A record, as soon as the rank that owns its layer has written it."""
        while not self.run.fresh(name, inputs):
            time.sleep(POLL_S)
        return self.run.load_tensors(name)


@torch.no_grad()
def forward(parent: Parent, layer: int, hidden_STD: torch.Tensor) -> torch.Tensor:
    """What the parent's layer makes of the streams [S, T, D], a few sequences at a time."""
    module = parent.layer(layer)
    context = parent.context(hidden_STD[:1], module.window)
    return torch.cat([module(batch, **context) for batch in _batches(hidden_STD)])


def head_gradients(
    parent: Parent, hidden_STD: torch.Tensor, samples: int, seed: int
) -> torch.Tensor:
    """g_L [K, S, T, D]: gradients of the log-probability of K label draws at every position.

    With logits z = W n(h), the gradient of `log p(y)` at n(h) is `W[y] - sum_v p_v W[v]`; the sum
    is shared by all K draws, so K samples cost one product with W, not K.
    """
    head = parent.head()
    norm, weight_VD = head[0], head[1].get_parameter("weight")
    size = max(1, HEAD_BYTES // (4 * len(weight_VD) * hidden_STD.shape[1]))  # sequences at once
    generator = torch.Generator().manual_seed(seed)

    def gradients(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.detach().requires_grad_()
        normed = norm(batch)
        probability = (normed.detach() @ weight_VD.T).float().softmax(dim=-1)
        draws = torch.multinomial(probability.flatten(0, 1), samples, True, generator=generator)
        expected = probability.to(normed.dtype) @ weight_VD
        labels = draws.T.reshape(samples, *batch.shape[:2])
        return _pull_back(normed, batch, (weight_VD[y] - expected for y in labels))

    return torch.cat([gradients(batch) for batch in hidden_STD.split(size)], dim=1)


def backward(
    parent: Parent, layer: int, hidden_STD: torch.Tensor, above_KSTD: torch.Tensor
) -> torch.Tensor:
    """g_i [K, S, T, D] from g_{i+1}: one forward of the layer and K vector-Jacobian products."""
    module = parent.layer(layer)
    context = parent.context(hidden_STD[:1], module.window)
    size = _sequences(hidden_STD)
    pulled = []
    for start in range(0, len(hidden_STD), size):
        batch = hidden_STD[start : start + size].detach().requires_grad_()
        output = module(batch, **context)
        pulled.append(_pull_back(output, batch, above_KSTD[:, start : start + size]))
    return torch.cat(pulled, dim=1)


def _pull_back(
    output: torch.Tensor, source: torch.Tensor, gradients: Iterator[torch.Tensor] | torch.Tensor
) -> torch.Tensor:
    pull: Callable[[torch.Tensor], torch.Tensor] = lambda gradient: torch.autograd.grad(  # noqa: E731
        output, source, gradient.to(output.dtype), retain_graph=True
    )[0]
    return torch.stack([pull(gradient) for gradient in gradients])


def _sequences(hidden_STD: torch.Tensor) -> int:
    return max(1, BATCH_TOKENS // hidden_STD.shape[1])


def _batches(hidden_STD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return hidden_STD.split(_sequences(hidden_STD))
