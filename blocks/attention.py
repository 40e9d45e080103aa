"""How an attention variant starts from the parent's attention.

Legend: D hidden, H query heads, K KV heads of the parent, k of the child, d head_dim. A group is a
KV head with the H / K query heads it serves.
Weights are named as inside a layer: `self_attn.q_proj.weight` [H d, D], `self_attn.k_proj.weight`
and `self_attn.v_proj.weight` [K d, D], `self_attn.o_proj.weight` [D, H d].
"""

from __future__ import annotations

import torch

from .kind import AttentionVariant
from .own import OwnVariant
from .variant import GQA, Groups, NoOp

Weights = dict[str, torch.Tensor]
NORM = "input_layernorm."
ATTENTION = "self_attn."


def initial_attention(variant: AttentionVariant, parent: Weights, head_dim: int) -> Weights:
    """The attention half of `variant`, computed from the parent layer's weights alone.

    Fewer KV heads: K and V projections are mean-pooled inside each new group (Ainslie et al.,
    2023). Linear: `sum_h W_o[h] W_v[g(h)]`, attention in which each token sees itself.

    Raises:
        ValueError: when the new number of KV heads does not divide the parent's.
    """
    if isinstance(variant, NoOp):
        return {}
    half = {name: w for name, w in parent.items() if name.startswith((NORM, ATTENTION))}
    if isinstance(variant, GQA):
        return {name: _pool(name, w, variant.kv_heads, head_dim) for name, w in half.items()}
    norm = {name: w for name, w in half.items() if name.startswith(NORM)}
    if isinstance(variant, OwnVariant):
        return norm | {ATTENTION + name: w for name, w in variant.initial(parent).items()}
    return norm | {"self_attn.linear_attn.weight": self_attention_map(half, head_dim)}


def keep_groups(variant: GQA, parent: Weights, head_dim: int, missed_HH: torch.Tensor) -> Weights:
    """The attention half of `variant` from the groups of heads that the parent misses least.

    Where the variant has all query heads, those of the groups that go are shared out among the KV
    heads that stay, and are not heard: a refit may find a use for what they see there.

    Args:
        missed_HH: what removing a set of heads costs, as the sum over its pairs [i, j].
    """
    half = {name: w for name, w in parent.items() if name.startswith((NORM, ATTENTION))}
    heads = len(missed_HH)
    kv_heads = len(half["self_attn.k_proj.weight"]) // head_dim
    of_group = torch.arange(heads).view(kv_heads, -1)
    missed_KK = missed_HH.unflatten(0, of_group.shape).sum(1).unflatten(1, of_group.shape).sum(2)
    kept = least_missed(missed_KK, variant.kv_heads)
    queries = of_group[kept]
    if not isinstance(variant, Groups):
        gone = [group for group in range(kv_heads) if group not in kept]
        queries = torch.cat([queries, of_group[gone].view(len(kept), -1)], dim=1)
    heard = torch.zeros_like(queries, dtype=torch.bool)
    heard[:, : of_group.shape[1]] = True
    found = {}
    for name, weight in half.items():
        if name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            weight = weight.unflatten(0, (-1, head_dim))[kept].flatten(0, 1)
        elif name.startswith("self_attn.q_proj."):
            weight = weight.unflatten(0, (-1, head_dim))[queries.flatten()].flatten(0, 1)
        elif name == "self_attn.o_proj.weight":
            columns = weight.unflatten(1, (-1, head_dim))[:, queries.flatten()]
            weight = (columns * heard.view(1, -1, 1)).flatten(1)
        elif name == "self_attn.sinks":
            weight = weight[queries.flatten()]
        found[name] = weight
    return found


def least_missed(missed: torch.Tensor, count: int) -> list[int]:
    """The `count` parts to keep, in order; one after another goes the one that then costs least.

    >>> least_missed(torch.tensor([[3.0, 0, 0], [0, 1, 2], [0, 2, 2]]), 1)  # 1 goes, then 0
    [2]
    """
    kept = list(range(len(missed)))
    costs = missed.diagonal().clone()
    while len(kept) > count:
        least = min(kept, key=lambda part: float(costs[part]))
        kept.remove(least)
        costs += missed[least] + missed[:, least]
    return kept


def self_attention_map(parent: Weights, head_dim: int) -> torch.Tensor:
    """`W_o W_v` [D, D]: what attention computes when every token attends to itself only."""
    value = parent["self_attn.v_proj.weight"].unflatten(0, (-1, head_dim))  # K d D
    output = parent["self_attn.o_proj.weight"].unflatten(1, (-1, head_dim))  # D H d
    group = output.shape[1] // value.shape[0]
    return torch.einsum("ohd,hdi->oi", output, value.repeat_interleave(group, dim=0))


def _pool(name: str, weight: torch.Tensor, kv_heads: int, head_dim: int) -> torch.Tensor:
    """Mean-pool a K or V projection (weight or bias) to `kv_heads`; others pass through."""
    if not name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
        return weight
    heads = weight.shape[0] // head_dim
    if heads % kv_heads:
        raise ValueError(f"{kv_heads} KV heads do not divide the parent's {heads}")
    if heads == kv_heads:
        return weight
    grouped = weight.unflatten(0, (kv_heads, heads // kv_heads, head_dim))
    return grouped.mean(dim=1).flatten(0, 1)
