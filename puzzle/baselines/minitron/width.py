"""Width pruning: the tensors of a cut, taken from the parent's by importance.

Heads go by KV group: whole groups, or as many query heads of each, so that the shape stays one that
every engine loads. Norms are rescaled by how much of the stream's energy their channels keep, which
makes the removal of silent channels exact.

Legend: D hidden, H query heads, K KV heads, G = H / K query heads of a group, d size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puzzle.baselines.minitron.cut import Cut
from puzzle.baselines.minitron.importance import Importance
from puzzle.modules import Weights
from puzzle.parent import Parent

# module of a layer -> what its rows and its columns stand for
AXES = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "self_attn.q_norm": (),
    "self_attn.k_norm": (),
    "mlp.gate_proj": ("neurons", "hidden"),
    "mlp.up_proj": ("neurons", "hidden"),
    "mlp.down_proj": ("hidden", "neurons"),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
}
NORMS = ("input_layernorm", "post_attention_layernorm")


def prune_tensors(
    parent: Parent, cut: Cut, importance: Importance, *, merge: float = 0.0
) -> Weights:
    """Every tensor of the pruned model by checkpoint name, one of the parent's layers at a time.

    Args:
        merge: of heads that go, how much of the difference to it is added to the head that stays
            in its stead; 1 is Minitron's `head += head - lost`, -0.5 their mean, 0 none.
    """
    hidden = top(importance.channels_D, cut.hidden_size)
    kept = {"hidden": hidden}
    weights = parent.outside_weights()
    found = {
        name: tensor[:, hidden] if tensor.dim() == 2 else tensor[hidden]
        for name, tensor in weights.items()
    }
    _rescale(parent, found, "model.norm", importance.energy_ND[-1], hidden)
    for place, layer in enumerate(cut.layers):
        tensors = parent.layer_weights(layer)
        heads = _Heads.of(parent, cut, importance.heads_LH[layer])
        if merge:
            tensors = heads.merged(tensors, merge)
        kept |= heads.rows() | {"neurons": top(importance.neurons_LF[layer], cut.intermediate_size)}
        sliced = {name: _slice(name, tensor, kept) for name, tensor in tensors.items()}
        for norm, energy_D in zip(NORMS, importance.energy_ND[2 * layer : 2 * layer + 2]):
            _rescale(parent, sliced, norm, energy_D, hidden)
        found |= {f"model.layers.{place}.{name}": tensor for name, tensor in sliced.items()}
    return found


def top(importance: torch.Tensor, count: int) -> torch.Tensor:
    """The most important places, in their own order."""
    order = importance.argsort(descending=True, stable=True)
    return order[:count].sort().values


def _slice(name: str, tensor: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    for dimension, axis in enumerate(AXES[name.rpartition(".")[0]][: tensor.dim()]):
        tensor = tensor.index_select(dimension, kept[axis])
    return tensor


def _rescale(
    parent: Parent, tensors: Weights, norm: str, energy_D: torch.Tensor, kept: torch.Tensor
) -> None:
    """Have a norm over the kept channels put out what the whole one does, on average.

    `y = x / rms(x) w`, and `rms` of the kept over that of all is `sqrt(energy D / D')`.
    """
    if len(kept) == len(energy_D):
        return
    gain = float((energy_D[kept].sum() * len(energy_D) / len(kept)).sqrt())
    one = int(parent.shape.norm_bias)  # of such families' norms the weight is stored less one
    tensors[f"{norm}.weight"] = (tensors[f"{norm}.weight"] + one) * gain - one


@dataclass(frozen=True)
class _Heads:
    """Query heads of one layer: by group [K, G], groups and heads in order of importance."""

    order_KG: torch.Tensor
    ranking_K: torch.Tensor
    groups: int  # that stay
    each: int  # query heads of a group that stay
    head_dim: int

    @classmethod
    def of(cls, parent: Parent, cut: Cut, importance_H: torch.Tensor) -> _Heads:
        kv_heads, each = parent.shape.kv_heads, cut.heads // cut.kv_heads
        grouped_KG = importance_H.unflatten(0, (kv_heads, -1))
        order = grouped_KG.argsort(dim=1, descending=True, stable=True)
        ranking = grouped_KG.gather(1, order)[:, :each].sum(dim=1).argsort(descending=True)
        first = torch.arange(kv_heads)[:, None] * grouped_KG.shape[1]
        return cls(order + first, ranking, cut.kv_heads, each, parent.shape.head_dim)

    def rows(self) -> dict[str, torch.Tensor]:
        """The rows of the query and of the KV projections that stay."""
        groups = self.ranking_K[: self.groups].sort().values
        queries = self.order_KG[groups, : self.each].sort(dim=1).values
        return {"query": self._rows(queries.flatten()), "kv": self._rows(groups)}

    def merged(self, tensors: Weights, merge: float) -> Weights:
        """The tensors where the least important heads that stay took up those that go.

        In groups of several query heads only their queries are; else queries, keys and values.
        """
        alone = self.order_KG.shape[1] == 1
        rankings, count = (
            (self.ranking_K[None], self.groups) if alone else (self.order_KG, self.each)
        )
        parts = ("q_proj", "k_proj", "v_proj") if alone else ("q_proj",)
        found = dict(tensors)
        for name, tensor in tensors.items():
            if name.startswith(tuple(f"self_attn.{part}." for part in parts)):
                heads = tensor.unflatten(0, (-1, self.head_dim)).clone()
                for ranking in rankings:
                    for stays, goes in zip(ranking[:count].flip(0), ranking[count:]):
                        heads[stays] += merge * (heads[stays] - heads[goes])
                found[name] = heads.flatten(0, 1)
        return found

    def _rows(self, heads: torch.Tensor) -> torch.Tensor:
        return (heads[:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()
