"""Trace: the two sweeps over the layers, the only stage that needs them in order.

Forwards, the residual streams h_0 .. h_L of the calibration and the scoring split. Backwards, on
the scoring split, K samples of the Fisher gradients g_L .. g_1: labels y_t are drawn independently
at every position from the parent's own next-token distribution, and
`g_i = d/dh_i sum_t log p(y_t)`. One parent layer is in memory at a time.

Legend: S sequences, T tokens, D hidden, V vocabulary, K samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from puzzle import records
from puzzle.corpus import digest
from puzzle.parent import Parent
from puzzle.progress import track
from puzzle.run import Run, fingerprint

BATCH_TOKENS = 4096  # of one forward pass; bounds the activations in memory


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
    """Write every missing stream and gradient; returns the fingerprint of the whole trace.

    Args:
        splits: token ids [S, T] by split; `calibration` and `scoring` are traced.
        samples: K, the number of label draws of the Fisher gradients.
    """
    prints = {}
    for split in ("calibration", "scoring"):
        prints[split] = fingerprint("hidden", parent.fingerprint, split, digest(splits[split]))
        _forward_sweep(run, parent, split, splits[split], prints[split])
    prints["gradients"] = fingerprint("gradients", prints["scoring"], samples, seed)
    _backward_sweep(run, parent, samples, seed, prints["gradients"])
    return fingerprint(prints)


def _forward_sweep(run: Run, parent: Parent, split: str, tokens: torch.Tensor, inputs: str) -> None:
    if not run.fresh(records.tokens(split), inputs):
        run.save_tensors(records.tokens(split), {"tokens": tokens}, inputs)
    if not run.fresh(records.hidden(split, 0), inputs):
        run.save_tensors(records.hidden(split, 0), {"h": parent.embed(tokens)}, inputs)
    for layer in track(range(parent.shape.layers), f"trace {split}"):
        if run.fresh(records.hidden(split, layer + 1), inputs):
            continue
        hidden = run.load_tensors(records.hidden(split, layer))["h"]
        run.save_tensors(
            records.hidden(split, layer + 1), {"h": forward(parent, layer, hidden)}, inputs
        )


@torch.no_grad()
def forward(model: Layered, layer: int, hidden_STD: torch.Tensor) -> torch.Tensor:
    """What the model's layer makes of the streams [S, T, D], a few sequences at a time."""
    module = model.layer(layer)
    context = model.context(hidden_STD[:1], module.window)
    return torch.cat([module(batch, **context) for batch in _batches(hidden_STD)])


def _backward_sweep(run: Run, parent: Parent, samples: int, seed: int, inputs: str) -> None:
    last = parent.shape.layers
    if not run.fresh(records.gradient(last), inputs):
        hidden = run.load_tensors(records.hidden("scoring", last))["h"]
        gradient = head_gradients(parent, hidden, samples, seed)
        run.save_tensors(records.gradient(last), {"g": gradient}, inputs)
    for layer in track(range(last - 1, 0, -1), "trace gradients"):
        if run.fresh(records.gradient(layer), inputs):
            continue
        hidden = run.load_tensors(records.hidden("scoring", layer))["h"]
        above = run.load_tensors(records.gradient(layer + 1))["g"]
        gradient = backward(parent, layer, hidden, above)
        run.save_tensors(records.gradient(layer), {"g": gradient}, inputs)


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

    return torch.cat([gradients(batch) for batch in _batches(hidden_STD)], dim=1)


def draw_labels(p_NV: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """`samples` labels at every position, each drawn from p [N, K], together spread evenly over it.

    Systematic sampling: K points at equal distances from one random start go through the cumulative
    distribution, in an order of its own at every position, so that positions stay independent. The
    variance of scores is less than half that of independent draws.
    """
    cumulative = p_NV.cumsum(dim=-1)  # torch adds in float64
    shape = (len(p_NV), samples)
    order = torch.rand(shape, generator=generator).argsort(dim=-1)
    start = torch.rand((len(p_NV), 1), generator=generator)
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

    return torch.cat(list(map(gradient, _batches(hidden_STD), _batches(parent_STD))))


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
    return max(1, BATCH_TOKENS // hidden_STD.shape[1])


def _batches(hidden_STD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return hidden_STD.split(_sequences(hidden_STD))
