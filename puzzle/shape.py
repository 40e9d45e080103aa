"""The shape of a parent: the numbers of its config.json that decide what its layers hold.

>>> tiny = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
...         "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 100}
>>> shape = Shape.from_config(tiny)
>>> str(shape.parent_block()), shape.block_params(shape.parent_block())
('gqa4+ffn256', 65664)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puzzle.blocks.variant import (
    FFN,
    GQA,
    AttentionVariant,
    Block,
    FFNVariant,
    LinearMap,
    NoOp,
)
from puzzle.errors import PuzzleError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class _Traits:
    """What a family's code fixes or reads from its config.json; defaults are transformers' own."""

    gated: bool = True
    norm_bias: bool = False
    qk_norm: bool = False
    qkv_bias: bool | str = False  # a name is the config key that says so
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    max_positions: int = 2048
    head_dim: int | None = None


_TRAITS = {
    "llama": _Traits(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _Traits(max_positions=131072),
    "qwen2": _Traits(qkv_bias=True, max_positions=32768),
    "qwen3": _Traits(
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        max_positions=32768,
        head_dim=128,
    ),
    "nemotron": _Traits(
        gated=False,
        norm_bias=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        max_positions=4096,
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes and switches of a parent; everything that counts parameters or seconds reads this."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool
    gated: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    norm_bias: bool
    window: int | None = None
    full_layers: int = 0  # the first layers, which see everything where the others have a window

    @classmethod
    def from_config(cls, config: Config) -> Shape:
        """Read a Hugging Face config.json; PuzzleError names what is missing or unsupported."""
        family = config.get("model_type")
        if family not in _TRAITS:
            raise PuzzleError(
                f"model type {family!r} is not supported; the families are {', '.join(_TRAITS)}"
            )
        traits = _TRAITS[family]
        hidden_size = _required(config, "hidden_size")
        heads = _required(config, "num_attention_heads")
        window, full_layers = _window(config)
        return cls(
            layers=_required(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or traits.head_dim or hidden_size // heads,
            intermediate_size=_required(config, "intermediate_size"),
            vocab_size=_required(config, "vocab_size"),
            max_positions=config.get("max_position_embeddings", traits.max_positions),
            tied=bool(config.get("tie_word_embeddings", False)),
            gated=traits.gated,
            qkv_bias=_switch(config, traits.qkv_bias),
            o_bias=_switch(config, traits.o_bias),
            mlp_bias=_switch(config, traits.mlp_bias),
            qk_norm=traits.qk_norm,
            norm_bias=traits.norm_bias,
            window=window,
            full_layers=full_layers,
        )

    def parent_block(self, layer: int = -1) -> Block:
        """The block that a layer of the parent holds: the last unless told which."""
        windowed = layer % self.layers >= self.full_layers
        attention = GQA(self.kv_heads, self.window if windowed else None)
        return Block(attention, FFN(self.intermediate_size))

    def parent_blocks(self) -> tuple[Block, ...]:
        """The block of every layer of the parent, in order."""
        return tuple(map(self.parent_block, range(self.layers)))

    @property
    def norm_params(self) -> int:
        """One norm over the hidden size: a weight, and a bias where the family has one."""
        return self.hidden_size * (2 if self.norm_bias else 1)

    @property
    def linear_params(self) -> int:
        """A linear half: its norm and one hidden x hidden matrix without bias."""
        return self.norm_params + self.hidden_size**2

    def qkv_size(self, kv_heads: int) -> int:
        """Columns of the joint query, key and value projection: (heads + 2 kv_heads) head_dim."""
        return (self.heads + 2 * kv_heads) * self.head_dim

    def attention_params(self, variant: AttentionVariant) -> int:
        """Parameters of an attention half, its norm included.

        GQA: norm + hidden (2 heads + 2 kv_heads) head_dim + biases + q and k norms.
        """
        match variant:
            case NoOp():
                return 0
            case LinearMap():
                return self.linear_params
            case GQA(kv_heads=kv_heads):
                qkv_size = self.qkv_size(kv_heads)
                weights = self.hidden_size * (qkv_size + self.heads * self.head_dim)
                biases = self.qkv_bias * qkv_size + self.o_bias * self.hidden_size
                return self.norm_params + weights + biases + self.qk_norm * 2 * self.head_dim

    def ffn_params(self, variant: FFNVariant) -> int:
        """Parameters of an FFN half, its norm included.

        FFN: norm + 3 hidden intermediate_size (2 when ungated) + biases.
        """
        match variant:
            case NoOp():
                return 0
            case LinearMap():
                return self.linear_params
            case FFN(intermediate_size=width):
                into = 2 if self.gated else 1
                weights = (into + 1) * self.hidden_size * width
                biases = self.mlp_bias * (into * width + self.hidden_size)
                return self.norm_params + weights + biases

    def block_params(self, block: Block) -> int:
        """Parameters of one layer that holds `block`."""
        return self.attention_params(block.attention) + self.ffn_params(block.ffn)

    def outside_params(self) -> int:
        """Parameters outside the layers: embedding, head unless tied, final norm."""
        matrices = 1 if self.tied else 2
        return matrices * self.vocab_size * self.hidden_size + self.norm_params

    def model_params(self, blocks: tuple[Block, ...]) -> int:
        """Parameters of the whole model whose layers hold `blocks`."""
        return sum(map(self.block_params, blocks)) + self.outside_params()


def _required(config: Config, key: str) -> int:
    if not isinstance(config.get(key), int):
        raise PuzzleError(f"config.json gives {key} = {config.get(key)!r}; expected a whole number")
    return int(config[key])


def _switch(config: Config, trait: bool | str) -> bool:
    return bool(config.get(trait, False)) if isinstance(trait, str) else trait


def _window(config: Config) -> tuple[int | None, int]:
    """The window, and how many first layers go without: Mistral's for all, Qwen's on request."""
    window = config.get("sliding_window", 4096)
    if config["model_type"] == "mistral":
        return window, 0
    if config.get("use_sliding_window", False):
        return window, config.get("max_window_layers", 28)
    return None, 0
