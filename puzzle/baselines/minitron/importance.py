"""Importance of heads, FFN channels and hidden channels, from one forward pass, layer by layer.

A head's activation is `|Attn_i|_2`, a neuron's what enters `down_proj`, a hidden channel's what the
norms put out, summed over them all to one ranking (Minitron, 2407.14679, section 2.2). They are
aggregated over the tokens of a text, then over texts.

Legend: S texts, T tokens, L layers, D hidden, H heads, d size of a head, F neurons, A ways to
aggregate, M sums over texts (of values, of their squares), N norms (2 L + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from puzzle.config import Aggregation
from puzzle.modules import Weights
from puzzle.parent import Parent
from puzzle.progress import track

BATCH_TOKENS = 4096  # of one forward pass
SAMPLED = 2048  # tokens whose streams are compared between all layers

# of activations [S, T, C] over the tokens of each text
OVER_TOKENS: dict[Aggregation, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x_STC: x_STC.abs().mean(dim=1),
    "l2": lambda x_STC: x_STC.square().sum(dim=1).sqrt(),
    "var": lambda x_STC: x_STC.var(dim=1, correction=0),
}
WAYS = list(OVER_TOKENS)


@dataclass(frozen=True)
class Importance:
    """What a parent's parts are worth; `energy` and `turns` do not depend on the aggregation."""

    heads_LH: torch.Tensor
    neurons_LF: torch.Tensor
    channels_D: torch.Tensor
    energy_ND: torch.Tensor  # each channel's share of |x|^2 where a norm reads the stream
    turns: torch.Tensor  # [L + 1, L + 1]: `1 - E cos(h_i, h_j)`, the block influence of i to j - 1

    @classmethod
    def of(cls, seen: Weights, over_tokens: Aggregation, over_texts: Aggregation) -> Importance:
        """Aggregate what `activity` saw."""
        heads, neurons, channels = (
            _over_texts(seen[name][WAYS.index(over_tokens)], over_texts, int(seen["texts"]))
            for name in ("heads", "neurons", "channels")
        )
        return cls(heads, neurons, channels.sum(dim=0), seen["energy"], seen["turns"])


def _over_texts(sums_MLC: torch.Tensor, way: Aggregation, texts: int) -> torch.Tensor:
    total, squares = sums_MLC
    if way == "mean":
        return total / texts
    if way == "l2":
        return squares.sqrt()
    return (squares / texts - (total / texts).square()).clamp_min(0)


@torch.no_grad()
def activity(parent: Parent, tokens_ST: torch.Tensor) -> Weights:
    """Sums over texts of every aggregation over tokens: `heads` and the like [A, M, L, C].

    One layer is in memory at a time.
    """
    hidden = parent.embed(tokens_ST)
    sampled = [_sample(hidden)]
    found: dict[str, list[torch.Tensor]] = {"heads": [], "neurons": [], "channels": []}
    energy = []
    for layer in track(range(len(parent.blocks)), "importance"):
        module = parent.layer(layer)
        context = parent.context(hidden[:1], module.window)
        watched = _Watched(parent.shape.heads)
        handles = watched.attach(module)
        hidden = torch.cat([module(batch, **context) for batch in _batches(hidden)])
        for handle in handles:
            handle.remove()
        sampled.append(_sample(hidden))
        found["heads"].append(watched.sums["heads"])
        found["neurons"].append(watched.sums["neurons"])
        found["channels"] += [watched.sums["attention norm"], watched.sums["ffn norm"]]
        energy += [watched.energy["attention norm"], watched.energy["ffn norm"]]
    watched, final = _Watched(parent.shape.heads), parent.head()[0]
    for batch in _batches(hidden):
        watched.norm("final norm", batch, final(batch))
    found["channels"].append(watched.sums["final norm"])
    energy.append(watched.energy["final norm"])
    stacked = {name: torch.stack(each, dim=2).float() for name, each in found.items()}
    return {
        **stacked,
        "energy": torch.stack(energy).float() / tokens_ST.numel(),
        "turns": _turns(torch.stack(sampled)),
        "texts": torch.tensor(len(tokens_ST)),
    }


class _Watched:
    """Sums over the texts that passed through one layer."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.sums: dict[str, torch.Tensor] = {}  # [A, M, C]
        self.energy: dict[str, torch.Tensor] = {}  # [D]

    def attach(self, layer: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Have a layer's modules report what enters or leaves them."""

        def entering(what: str, path: str) -> torch.utils.hooks.RemovableHandle:
            return layer.get_submodule(path).register_forward_pre_hook(
                lambda _, inputs: self.add(what, inputs[0])
            )

        def norm(what: str, path: str) -> torch.utils.hooks.RemovableHandle:
            return layer.get_submodule(path).register_forward_hook(
                lambda _, inputs, output: self.norm(what, inputs[0], output)
            )

        return [
            entering("heads", "self_attn.o_proj"),
            entering("neurons", "mlp.down_proj"),
            norm("attention norm", "input_layernorm"),
            norm("ffn norm", "post_attention_layernorm"),
        ]

    def add(self, what: str, x_STC: torch.Tensor) -> None:
        """Add activations; those of heads count by their length."""
        x_STC = x_STC.float()
        if what == "heads":
            x_STC = x_STC.unflatten(-1, (self.heads, -1)).norm(dim=-1)
        each_SC = [way(x_STC).double() for way in OVER_TOKENS.values()]
        sums = torch.stack([torch.stack([e.sum(0), e.square().sum(0)]) for e in each_SC])
        self.sums[what] = self.sums.get(what, torch.zeros(())) + sums

    def norm(self, what: str, enter_STD: torch.Tensor, leave_STD: torch.Tensor) -> None:
        """Add what a norm reads and writes."""
        self.add(what, leave_STD)
        square = enter_STD.float().square()
        share = square / square.sum(dim=-1, keepdim=True).clamp_min(torch.finfo().tiny)
        added = share.double().sum(dim=(0, 1))
        self.energy[what] = self.energy.get(what, torch.zeros(())) + added


def _batches(hidden_STD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return hidden_STD.split(max(1, BATCH_TOKENS // hidden_STD.shape[1]))


def _sample(hidden_STD: torch.Tensor) -> torch.Tensor:
    """Tokens [n, D] at even distances, of unit length."""
    flat = hidden_STD.flatten(0, 1)
    return F.normalize(flat[:: max(1, len(flat) // SAMPLED)].float(), dim=-1)


def _turns(sampled_LND: torch.Tensor) -> torch.Tensor:
    cosine = torch.einsum("ind,jnd->ij", sampled_LND, sampled_LND) / sampled_LND.shape[1]
    return 1 - cosine
