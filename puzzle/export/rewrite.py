"""Exact rewrites of a child for engines that lack one of its block types.

Every rewrite leaves the logits as they are, to the last bit: it adds terms that are exactly zero,
or scales by powers of two. What cannot be rewritten is refused in one sentence.

    linear FFN W         SwiGLU of width D: gate 0 with bias 32, up W / 32, down the identity, since
                         silu(32) = 32 in floating point; every other FFN gets biases of zero
    linear attention W   a layer of its own before: no attention, and W as a linear FFN
    nothing at all       no layer
    no first attention   one KV head whose projections are zero
    fewer heads (vLLM)   query heads that nothing hears, and KV heads of zero where it takes some
    no FFN (llama.cpp)   32 channels of zero
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from puzzle.blocks.variant import FFN, GQA, NOTHING, Block, Groups, LinearMap, NoOp
from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import head_dim
from puzzle.export.targets import ZERO_WIDTH, Target, check_family, refusal
from puzzle.library import own_half
from puzzle.modules import Weights, build_layer

GATE = 32.0  # silu(32) = 32 in float32 and narrower
NORM, FFN_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"


@dataclass(frozen=True)
class Child:
    """A child to be written: its parent's configuration, its blocks, its tensors by name."""

    config: Any
    blocks: tuple[Block, ...]
    weights: Weights

    def layers(self) -> list[Layer]:
        """Every layer: its block, and its tensors named as inside the layer."""
        split: list[Weights] = [{} for _ in self.blocks]
        for name, tensor in self.weights.items():
            if name.startswith("model.layers."):
                _, _, layer, inside = name.split(".", 3)
                split[int(layer)][inside] = tensor
        return [*map(Layer, self.blocks, split)]

    def with_layers(self, layers: Sequence[Layer]) -> Child:
        """The same model around other layers."""
        weights = {n: w for n, w in self.weights.items() if not n.startswith("model.layers.")}
        for index, layer in enumerate(layers):
            weights |= {f"model.layers.{index}.{n}": w for n, w in layer.weights.items()}
        return replace(self, blocks=tuple(layer.block for layer in layers), weights=weights)


@dataclass(frozen=True)
class Layer:
    """What one layer holds: its block, and its tensors named as inside the layer."""

    block: Block
    weights: Weights


def rewrite(child: Child, target: Target) -> Child:
    """The child as `target` can load it; with the same logits.

    Raises:
        PuzzleError: the engine cannot serve this child, whichever way it is written.
    """
    check_family(target, child.config.model_type)
    if target == "hf":
        return child
    split = [part for layer in child.layers() for part in _split(layer, target)]
    layers = [layer for layer in split if layer.block != NOTHING] or [Layer(NOTHING, {})]
    if target == "vllm":
        layers = [_with_heads(child.config, layer) for layer in layers]
    if isinstance(layers[0].block.attention, LinearMap):
        layers[:1] = _attention_apart(layers[0])
    layers[0] = _with_attention(child.config, layers[0])
    biased = any(isinstance(layer.block.ffn, LinearMap) for layer in layers)
    config = _with_biases(child.config) if biased else child.config
    layers = [_biased(config, _gated(layer)) for layer in layers]
    if target == "llama.cpp":
        layers = [_with_ffn(config, layer) for layer in layers]
    for index, layer in enumerate(layers):
        if reason := refusal(target, index, layer.block):
            raise PuzzleError(
                f"{target} cannot serve this child: layer {index} would hold {layer.block}, and "
                f"{reason}; export it --for hf, or search again with --set target={target}"
            )
    return replace(child, config=config).with_layers(layers)


def _split(layer: Layer, target: Target) -> list[Layer]:
    """A linear attention as a layer of its own, for engines without one."""
    linear = isinstance(layer.block.attention, LinearMap) and target == "vllm"
    return _attention_apart(layer) if linear else [layer]


def _attention_apart(layer: Layer) -> list[Layer]:
    """X + A norm(X) as an FFN half, then the FFN half that was there."""
    attention, ffn = Block(layer.block.attention, NoOp()), Block(NoOp(), layer.block.ffn)
    own = own_half(layer.weights, attention)
    moved = {
        FFN_NORM: own[NORM],
        "mlp.linear_mlp.weight": own["self_attn.linear_attn.weight"],
    }
    parts = [Layer(Block(NoOp(), LinearMap()), moved), Layer(ffn, own_half(layer.weights, ffn))]
    return [part for part in parts if part.block != NOTHING]


def _with_heads(config: Any, layer: Layer) -> Layer:
    """Groups of heads as the first query heads of KV heads that have more, all others zero."""
    attention = layer.block.attention
    if not isinstance(attention, Groups):
        return layer
    heads, size = config.num_attention_heads, head_dim(config)
    own = len(layer.weights["self_attn.q_proj.weight"]) // size
    group = own // attention.kv_heads
    kv_heads = next(
        count
        for count in range(attention.kv_heads, heads + 1)
        if heads % count == 0 and heads // count >= group
    )
    block = Block(GQA(kv_heads, attention.window), layer.block.ffn)
    places = [head // group * (heads // kv_heads) + head % group for head in range(own)]
    weights = dict(layer.weights)
    for name, zeros in _zeros(config, Block(block.attention, NoOp())).items():
        weight = weights[name]
        wide = zeros.to(weight.dtype)
        if name == "self_attn.o_proj.weight":
            wide.unflatten(1, (-1, size))[:, places] = weight.unflatten(1, (-1, size))
        elif name.startswith("self_attn.q_proj."):
            wide.unflatten(0, (-1, size))[places] = weight.unflatten(0, (-1, size))
        elif name.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            wide[: len(weight)] = weight
        else:
            wide = weight
        weights[name] = wide
    return Layer(block, weights)


def _gated(layer: Layer) -> Layer:
    """A linear FFN as SwiGLU: silu(0 x + 32) (W / 32) x = W x, through the identity."""
    if not isinstance(layer.block.ffn, LinearMap):
        return layer
    weights = dict(layer.weights)
    matrix = weights.pop("mlp.linear_mlp.weight")
    size = len(matrix)
    weights |= {
        "mlp.gate_proj.weight": torch.zeros_like(matrix),
        "mlp.gate_proj.bias": torch.full((size,), GATE, dtype=matrix.dtype),
        "mlp.up_proj.weight": matrix / GATE,
        "mlp.down_proj.weight": torch.eye(size, dtype=matrix.dtype),
    }
    return Layer(Block(layer.block.attention, FFN(size)), weights)


def _with_biases(config: Any) -> Any:
    biased = copy.deepcopy(config)
    biased.mlp_bias = True
    return biased


def _biased(config: Any, layer: Layer) -> Layer:
    """Biases of zero where the configuration has some and the layer has not."""
    if not (config.mlp_bias and isinstance(layer.block.ffn, FFN)):
        return layer
    zeros = _zeros(config, Block(NoOp(), layer.block.ffn))
    biases = {name: tensor for name, tensor in zeros.items() if name.endswith(".bias")}
    return replace(layer, weights=biases | layer.weights)


def _with_attention(config: Any, layer: Layer) -> Layer:
    """A first layer without attention, given one KV head that adds zero."""
    if not isinstance(layer.block.attention, NoOp):
        return layer
    zeros = _zeros(config, Block(GQA(1), NoOp()))
    return Layer(Block(GQA(1), layer.block.ffn), layer.weights | zeros)


def _with_ffn(config: Any, layer: Layer) -> Layer:
    """A layer without FFN, given a narrow one that adds zero."""
    if not isinstance(layer.block.ffn, NoOp):
        return layer
    block = Block(layer.block.attention, FFN(ZERO_WIDTH))
    return Layer(block, layer.weights | _zeros(config, Block(NoOp(), block.ffn)))


def _zeros(config: Any, half: Block) -> Weights:
    """A half whose tensors are all zero, its norm too."""
    layout = build_layer(config, half).state_dict()
    return {name: torch.zeros(meta.shape) for name, meta in layout.items()}
