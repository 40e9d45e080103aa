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
from typing import Any, Protocol

import torch
from torch import nn

from puzzle import ranks, records
from puzzle.corpus import digest
from puzzle.device import at_once, drawn
from puzzle.parent import Parent
from puzzle.progress import track
from puzzle.run import Run, fingerprint

BATCH_TOKENS = 4096  # of one forward pass; bounds the activations in memory
HEAD_BYTES = 256 * 2**20  # of one batch's logits
POLL_S = 0.02


class Layered(Protocol):
    """A model that gives its layers one at a time: the parent, or a child."""

    def layer(self, layer: int, /) -> Any:
        """One layer as the model has it, frozen."""

    def context(self, hidden_BTD: torch.Tensor, window: int | None, /) -> dict[str, Any]:
        """What a layer with this window needs beside its input."""

    def head(self) -> nn.Sequential:
        """Final norm and output projection."""


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
            self.run.save_tensors(records.tokens(split), {"tokens": tokens}, inputs)
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
def forward(model: Layered, layer: int, hidden_STD: torch.Tensor) -> torch.Tensor:
    """What the model's layer makes of the streams [S, T, D], a few sequences at a time."""
    module = model.layer(layer)
    context = model.context(hidden_STD[:1], module.window)
    return torch.cat([module(batch, **context) for batch in _batches(hidden_STD)])


def head_gradients(
    model: Layered, hidden_STD: torch.Tensor, samples: int, seed: int
) -> torch.Tensor:
    """g_L [K, S, T, D]: gradients of the log-probability of K label draws at every position.

    With logits z = W n(h), the gradient of `log p(y)` at n(h) is `W[y] - sum_v p_v W[v]`; the sum
    is shared by all K draws, so K samples cost one product with W, not K.
    """
    head = model.head()
    norm, weight_VD = head[0], head[1].get_parameter("weight")
    generator = torch.Generator().manual_seed(seed)

    def gradients(batch: torch.Tensor) -> torch.Tensor:
        batch = batch.detach().requires_grad_()
        normed = norm(batch)
        probability = (normed.detach() @ weight_VD.T).float().softmax(dim=-1)
        draws = draw_labels(probability.flatten(0, 1), samples, generator)
        expected = probability.to(normed.dtype) @ weight_VD
        labels = draws.T.reshape(samples, *batch.shape[:2])
        return _pull_back(normed, batch, (weight_VD[y] - expected for y in labels))

    return torch.cat(list(map(gradients, _head_batches(hidden_STD, weight_VD))), dim=1)


def draw_labels(p_NV: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """`samples` labels at every position, each drawn from p [N, K], together spread evenly over it.

    Systematic sampling: K points at equal distances from one random start go through the cumulative
    distribution, in an order of its own at every position, so that positions stay independent. The
    variance of scores is less than half that of independent draws.
    """
    cumulative = p_NV.cumsum(dim=-1)  # torch adds in float64
    shape = (len(p_NV), samples)
    order = drawn(shape, generator).argsort(dim=-1)
    start = drawn((len(p_NV), 1), generator)
    points = (order + start) / samples * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points).clamp_max(p_NV.shape[1] - 1)


def kl_gradient(model: Layered, hidden_STD: torch.Tensor, parent_STD: torch.Tensor) -> torch.Tensor:
    """`d/dh_L sum_t KL(p || q)` [S, T, D], where q is what the model says and p the parent.

    At n(h) it is `sum_v (q_v - p_v) W[v]`.
    """
    head = model.head()
    norm, weight_VD = head[0], head[1].get_parameter("weight")

    def gradient(batch: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        batch = batch.detach().requires_grad_()
        normed = norm(batch)
        q, p = ((n.detach() @ weight_VD.T).float().softmax(-1) for n in (normed, norm(parents)))
        return _pull_back(normed, batch, ((q - p).to(normed.dtype) @ weight_VD)[None])[0]

    batches = (_head_batches(stream, weight_VD) for stream in (hidden_STD, parent_STD))
    return torch.cat(list(map(gradient, *batches)))


def backward(
    model: Layered, layer: int, hidden_STD: torch.Tensor, above_KSTD: torch.Tensor
) -> torch.Tensor:
    """g_i [K, S, T, D] from g_{i+1}: one forward of the layer and K vector-Jacobian products."""
    module = model.layer(layer)
    context = model.context(hidden_STD[:1], module.window)
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
    return max(1, at_once(BATCH_TOKENS) // hidden_STD.shape[1])


def _batches(hidden_STD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return hidden_STD.split(_sequences(hidden_STD))


def _head_batches(hidden_STD: torch.Tensor, weight_VD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As many sequences as keep the logits small."""
    return hidden_STD.split(max(1, HEAD_BYTES // (4 * len(weight_VD) * hidden_STD.shape[1])))
