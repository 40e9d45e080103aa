"""How an FFN variant starts from the parent's feed-forward network.

Legend: D hidden, F intermediate size of the parent, f of the child.
Weights are named as inside a layer: `mlp.gate_proj.weight` (gated families) and
`mlp.up_proj.weight` [F, D], `mlp.down_proj.weight` [D, F].
"""

from __future__ import annotations

import torch

from .variant import FFN, FFNVariant, NoOp

Weights = dict[str, torch.Tensor]
NORM = "post_attention_layernorm."
MLP = "mlp."


def initial_ffn(variant: FFNVariant, parent: Weights, channels: torch.Tensor) -> Weights:
    """The FFN half of `variant`, computed from the parent layer's weights.

    Args:
        channels: the parent's F channels, most important first; a width keeps a prefix, in the
            order the parent had them.

    Linear: `W_down W_up`, the network with its nonlinearity left out.

    Raises:
        ValueError: when the width exceeds the parent's.
    """
    if isinstance(variant, NoOp):
        return {}
    half = {name: w for name, w in parent.items() if name.startswith((NORM, MLP))}
    if isinstance(variant, FFN):
        kept = kept_channels(channels, variant.intermediate_size)
        return {name: _keep(name, w, kept) for name, w in half.items()}
    norm = {name: w for name, w in half.items() if name.startswith(NORM)}
    product = half["mlp.down_proj.weight"] @ half["mlp.up_proj.weight"]
    return norm | {"mlp.linear_mlp.weight": product}


def kept_channels(channels: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` most important channels in the parent's own order."""
    if width > len(channels):
        raise ValueError(f"an FFN of {width} channels is wider than the parent's {len(channels)}")
    return channels[:width].sort().values


def _keep(name: str, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    if name == "mlp.down_proj.weight":
        return weight[:, kept]
    if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return weight[kept]
    return weight
