"""How an FFN variant starts from the parent's feed-forward network.

Legend: D hidden, F intermediate size of the parent, f of the child.
Weights are named as inside a layer: `mlp.gate_proj.weight` (gated families) and
`mlp.up_proj.weight` [F, D], `mlp.down_proj.weight` [D, F]. A mixture of E experts has tensors
`mlp.experts.*` and those of its router, all of which begin with the dimension E.
"""

from __future__ import annotations

import torch

from .kind import FFNVariant
from .own import OwnVariant
from .variant import FFN, MoE, NoOp

Weights = dict[str, torch.Tensor]
NORM = "post_attention_layernorm."
MLP = "mlp."


def initial_ffn(variant: FFNVariant, parent: Weights, parts: torch.Tensor) -> Weights:
    """The FFN half of `variant`, computed from the parent layer's weights.

    Args:
        parts: the parent's F channels, or E experts, most important first; a smaller variant
            keeps a prefix, in the order the parent had them.

    Linear: `W_down W_up`, the network with its nonlinearity left out. Of a mixture there is no
    such product that stands for all tokens: its linear map starts at zero, and the refit finds it.

    Raises:
        ValueError: when the width exceeds the parent's.
    """
    if isinstance(variant, NoOp):
        return {}
    half = {name: w for name, w in parent.items() if name.startswith((NORM, MLP))}
    if isinstance(variant, FFN):
        kept = kept_channels(parts, variant.intermediate_size)
        return {name: _keep(name, w, kept) for name, w in half.items()}
    if isinstance(variant, MoE):
        kept = parts[: variant.experts].sort().values
        return {name: w[kept] if name.startswith(MLP) else w for name, w in half.items()}
    norm = {name: w for name, w in half.items() if name.startswith(NORM)}
    if isinstance(variant, OwnVariant):
        return norm | {MLP + name: w for name, w in variant.initial(parent).items()}
    return norm | {"mlp.linear_mlp.weight": _linear(half)}


def kept_channels(channels: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` most important channels in the parent's own order."""
    if width > len(channels):
        raise ValueError(f"an FFN of {width} channels is wider than the parent's {len(channels)}")
    return channels[:width].sort().values


def _linear(half: Weights) -> torch.Tensor:
    """One matrix [D, D] in place of the network."""
    if "mlp.down_proj.weight" in half:
        return half["mlp.down_proj.weight"] @ half["mlp.up_proj.weight"]
    norm = half[f"{NORM}weight"]
    return norm.new_zeros(len(norm), len(norm))


def _keep(name: str, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    if name == "mlp.down_proj.weight":
        return weight[:, kept]
    if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return weight[kept]
    return weight
