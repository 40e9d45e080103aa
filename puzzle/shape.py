"""The shape of a parent: the numbers of its config.json that decide what its layers hold.

>>> tiny = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
...         "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 100}
>>> shape = Shape.from_config(tiny)
>>> str(shape.blocks[-1]), shape.block_params(shape.blocks[-1])
('gqa4+ffn256', 65664)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from puzzle import nemotron_nas
from puzzle.blocks.kind import AttentionVariant, FFNVariant
from puzzle.blocks.sizes import Sizes
from puzzle.blocks.variant import FFN, GQA, Block, MoE
from puzzle.errors import PuzzleError

Config = Mapping[str, Any]


def _never(config: Config, layer: int) -> bool:
    return False


def _always(config: Config, layer: int) -> bool:
    return True


def _on_request(config: Config, layer: int) -> bool:
    return bool(config.get("use_sliding_window", False))


def _late_on_request(config: Config, layer: int) -> bool:
    return _on_request(config, layer) and layer >= config.get("max_window_layers", 28)


def _every_other(config: Config, layer: int) -> bool:
    return layer % 2 == 0


@dataclass(frozen=True)
class _Traits:
    """What a family's code fixes or reads from its config.json; defaults are transformers' own."""

    gated: bool = True
    norm_bias: bool = False
    qk_norm: bool = False
    qkv_bias: bool | str = False  # a name is the config key that says so
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    sinks: bool = False
    experts: bool = False  # of which config.json gives the number
    expert_size: str = "intermediate_size"  # the config key of an expert's channels
    expert_bias: bool = False
    slides: Callable[[Config, int], bool] = _never  # which layers, unless `layer_types` says
    window: int | None = None
    max_positions: int = 2048
    head_dim: int | None = None


_TRAITS = {
    "llama": _Traits(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _Traits(slides=_always, window=4096, max_positions=131072),
    "qwen2": _Traits(qkv_bias=True, slides=_late_on_request, window=4096, max_positions=32768),
    "qwen3": _Traits(
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        slides=_late_on_request,
        window=4096,
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
    "mixtral": _Traits(experts=True, slides=_always, max_positions=131072),
    "qwen3_moe": _Traits(
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        experts=True,
        expert_size="moe_intermediate_size",
        slides=_on_request,
        window=4096,
        max_positions=32768,
    ),
    "gpt_oss": _Traits(
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        experts=True,
        expert_bias=True,
        slides=_every_other,
        window=128,
        max_positions=131072,
        head_dim=64,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Shape(Sizes):
    """Sizes of a parent and its blocks; all that counts parameters or seconds reads this."""

    blocks: tuple[Block, ...]  # of the parent, one a layer
    vocab_size: int
    max_positions: int
    tied: bool

    @classmethod
    def from_config(cls, config: Config) -> Shape:
        """Read a Hugging Face config.json; PuzzleError names what is missing or unsupported.

        Of a published child (nemotron-nas) the blocks are the child's own.
        """
        family = config.get("model_type")
        if family == nemotron_nas.MODEL_TYPE:
            whole = cls.from_config(nemotron_nas.as_llama(config))
            return replace(whole, blocks=nemotron_nas.blocks_of(config))
        if family not in _TRAITS:
            raise PuzzleError(
                f"model type {family!r} is not supported; the families are {', '.join(_TRAITS)}"
            )
        traits = _TRAITS[family]
        hidden_size = _required(config, "hidden_size")
        heads = _required(config, "num_attention_heads")
        kv_heads = config.get("num_key_value_heads") or heads
        experts = _experts(config) if traits.experts else 0
        return cls(
            blocks=_blocks(config, traits, kv_heads, experts),
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=kv_heads,
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
            sinks=traits.sinks,
            experts=experts,
            experts_per_token=_required(config, "num_experts_per_tok") if experts else 0,
            expert_size=_required(config, traits.expert_size) if experts else 0,
            expert_bias=traits.expert_bias,
        )

    @property
    def layers(self) -> int:
        """How many layers the parent has."""
        return len(self.blocks)

    def attention_params(self, variant: AttentionVariant) -> int:
        """Parameters of an attention half, its norm included."""
        return variant.params(self)

    def ffn_params(self, variant: FFNVariant) -> int:
        """Parameters of an FFN half, its norm included."""
        return variant.params(self)

    def block_params(self, block: Block) -> int:
        """Parameters of one layer that holds `block`."""
        return block.attention.params(self) + block.ffn.params(self)

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


def _experts(config: Config) -> int:
    """Experts of a layer, under either of the names that config.json gives them."""
    return _required(config, "num_experts" if "num_experts" in config else "num_local_experts")


def _blocks(config: Config, traits: _Traits, kv_heads: int, experts: int) -> tuple[Block, ...]:
    """What each layer holds: its window where it has one, its experts or its dense FFN."""
    windows = _windows(config, traits)
    dense = FFN(_required(config, "intermediate_size"))
    return tuple(
        Block(GQA(kv_heads, window), MoE(experts) if experts and _mixed(config, layer) else dense)
        for layer, window in enumerate(windows)
    )


def _mixed(config: Config, layer: int) -> bool:
    """Whether a layer of a model with experts holds them; Qwen3-MoE may have dense layers."""
    if layer in (config.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0


def _windows(config: Config, traits: _Traits) -> list[int | None]:
    """The window of every layer; None for those that see the whole past."""
    window = config.get("sliding_window", traits.window)
    layers = range(_required(config, "num_hidden_layers"))
    kinds = config.get("layer_types")
    if kinds and traits.slides is not _never:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    return [window if traits.slides(config, layer) else None for layer in layers]
