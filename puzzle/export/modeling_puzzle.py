"""Models whose layers differ, from transformers' own layer classes; shipped in every checkpoint.

A layer is two residual halves. Each half holds the parent family's own attention or MLP class,
built with this layer's KV heads or width, or one linear map, or nothing at all; a half without
work has no norm either. Layers without attention own no KV cache: cache slots are counted over
the layers that have attention, so that slot 0, which transformers asks for the length, exists.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import transformers
from torch import nn

# the oldest that was tried; 4 and 5.0 make their masks from other arguments
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
    raise ImportError(
        f"this model's code needs transformers 5.17 or later, found {transformers.__version__}; "
        "run `pip install -U transformers`"
    )

from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention

from .configuration_puzzle import (
    DeciLMConfig,
    PuzzleGptOssConfig,
    PuzzleMistralConfig,
    PuzzleMixtralConfig,
    PuzzleNemotronConfig,
    PuzzleQwen2Config,
    PuzzleQwen3Config,
    PuzzleQwen3MoeConfig,
)

# model type -> the transformers family whose layer classes it uses, and their prefix
FAMILIES = {
    "nemotron-nas": ("llama", "Llama"),
    "puzzle-mistral": ("mistral", "Mistral"),
    "puzzle-qwen2": ("qwen2", "Qwen2"),
    "puzzle-qwen3": ("qwen3", "Qwen3"),
    "puzzle-nemotron": ("nemotron", "Nemotron"),
    "puzzle-mixtral": ("mixtral", "Mixtral"),
    "puzzle-qwen3-moe": ("qwen3_moe", "Qwen3Moe"),
    "puzzle-gpt-oss": ("gpt_oss", "GptOss"),
}

# model type -> the class of its mixtures of experts. Its experts are @use_experts_implementation
# classes, and transformers looks for that word in the file of a model before it lets them be fast
MIXTURES = {
    "puzzle-mixtral": "SparseMoeBlock",
    "puzzle-qwen3-moe": "SparseMoeBlock",
    "puzzle-gpt-oss": "MLP",
}
ONLY_MIXTURES = {"puzzle-mixtral", "puzzle-gpt-oss"}  # families without a dense FFN

# modules of user-defined variants: class name -> (configuration, fields) -> module
OWN: dict[str, Callable[[Any, dict[str, Any]], nn.Module]] = {}

# transformers 5.24 renamed the KV cache, as an argument and in outputs; both names are served
CACHE = "cache"
if CACHE not in inspect.signature(LlamaAttention.forward).parameters:
    CACHE = "past_key_values"


def family_class(config: Any, name: str) -> Any:
    """The class `name` (Attention, MLP, RotaryEmbedding) of the family of `config`."""
    module, prefix = FAMILIES[config.model_type]
    return getattr(
        importlib.import_module(f"transformers.models.{module}.modeling_{module}"), prefix + name
    )


def norm(config: Any) -> nn.Module:
    """A new norm over the hidden size, of the family's class."""
    if config.model_type == "puzzle-nemotron":
        return family_class(config, "LayerNorm1P")(config.hidden_size, eps=config.norm_eps)
    return family_class(config, "RMSNorm")(config.hidden_size, eps=config.rms_norm_eps)


def query_heads(config: Any, attention: dict[str, Any]) -> int:
    """Query heads of one layer's attention entry: the model's, unless it names its own."""
    return int(attention.get("num_attention_heads") or config.num_attention_heads)


def kv_heads(config: Any, attention: dict[str, Any]) -> int:
    """KV heads of one layer's attention entry."""
    return query_heads(config, attention) // attention["n_heads_in_group"]


def head_dim(config: Any) -> int:
    """Channels of a head, in every layer."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def intermediate_size(config: Any, ffn: dict[str, Any]) -> int:
    """Width of one layer's FFN entry: as written, or from `ffn_mult` rounded up to 256."""
    if ffn.get("intermediate_size"):
        return int(ffn["intermediate_size"])
    return -(-int(2 * ffn["ffn_mult"] * config.hidden_size / 3) // 256) * 256


class LinearAttention(nn.Module):
    """One linear map in place of attention: every token sees only itself."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.linear_attn(hidden_states), None


class LinearMLP(nn.Module):
    """One linear map in place of the feed-forward network."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_mlp(hidden_states)


def attention_module(config: Any, attention: dict[str, Any], cache_slot: int) -> nn.Module | None:
    """The attention of one layer, or None for a no-op."""
    if attention["no_op"]:
        return None
    if attention["replace_with_linear"]:
        return LinearAttention(config.hidden_size)
    if attention.get("own"):
        return own_module(config, attention["own"])
    own = copy.copy(config)
    own.head_dim = head_dim(config)
    own.num_attention_heads = query_heads(config, attention)
    own.num_key_value_heads = kv_heads(config, attention)
    own.sliding_window = attention["window_length"]
    kind = "sliding_attention" if attention["window_length"] else "full_attention"
    own.layer_types = [kind] * config.num_hidden_layers
    return family_class(config, "Attention")(own, cache_slot)


def ffn_module(config: Any, ffn: dict[str, Any]) -> nn.Module | None:
    """The feed-forward network of one layer, or None for a no-op."""
    if ffn["no_op"]:
        return None
    if ffn["replace_with_linear"]:
        return LinearMLP(config.hidden_size)
    if ffn.get("own"):
        return own_module(config, ffn["own"])
    own = copy.copy(config)
    if ffn.get("moe"):
        own.num_experts = ffn["moe"]["num_local_experts"]
        own.num_experts_per_tok = min(own.num_experts, config.num_experts_per_tok)
        return family_class(config, MIXTURES[config.model_type])(own)
    if config.model_type in ONLY_MIXTURES:
        raise ValueError(f"models of type {config.model_type} have experts, no dense FFN: {ffn}")
    own.intermediate_size = intermediate_size(config, ffn)
    return family_class(config, "MLP")(own)


def own_module(config: Any, fields: dict[str, Any]) -> nn.Module:
    """The module of a user-defined variant."""
    kind = fields["kind"]
    if kind not in OWN:
        raise ValueError(
            f"a layer holds the user-defined variant {kind}; import it, then call "
            f"puzzle.add_variant({kind}) and puzzle.register() before loading"
        )
    return OWN[kind](config, {name: value for name, value in fields.items() if name != "kind"})


class PuzzleLayer(GradientCheckpointingLayer):
    """One layer: an attention half and an FFN half, either of which may be missing."""

    window: int | None

    def __init__(self, config: Any, block: dict[str, Any], cache_slot: int) -> None:
        super().__init__()
        self.window = block["attention"]["window_length"]
        self.self_attn = attention_module(config, block["attention"], cache_slot)
        self.mlp = ffn_module(config, block["ffn"])
        # flash attention takes a window from the module, and these hand on none of their own
        unsaid = type(self.self_attn).__name__ in ("LlamaAttention", "NemotronAttention")
        self.window_said = {"sliding_window": self.window} if self.window and unsaid else {}
        self.input_layernorm = norm(config) if self.self_attn is not None else None
        self.post_attention_layernorm = norm(config) if self.mlp is not None else None

    def attend(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        """The residual stream [B, T, D] after the attention half."""
        if self.self_attn is None or self.input_layernorm is None:
            return hidden_states
        entering = self.input_layernorm(hidden_states)
        output, _ = self.self_attn(hidden_states=entering, **context, **self.window_said)
        return hidden_states + output

    def feed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The residual stream [B, T, D] after the FFN half."""
        if self.mlp is None or self.post_attention_layernorm is None:
            return hidden_states
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        # GPT-OSS returns the router's scores beside
        return hidden_states + (output[0] if isinstance(output, tuple) else output)

    def forward(self, hidden_states: torch.Tensor, **context: Any) -> torch.Tensor:
        return self.feed(self.attend(hidden_states, **context))


class PuzzlePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every model of this file."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["PuzzleLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the families' own attention looks it up, in a configuration a layer

    def set_attn_implementation(self, *said: Any, **options: Any) -> None:
        super().set_attn_implementation(*said, **options)
        layers = (module for module in self.modules() if isinstance(module, PuzzleLayer))
        for own in (getattr(layer.self_attn, "config", None) for layer in layers):
            if own is not None:
                own._attn_implementation = self.config._attn_implementation


class PuzzleModel(PuzzlePreTrainedModel):
    """Embedding, layers that differ, final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers, cache_slot = [], 0
        for block in config.block_configs:
            layers.append(PuzzleLayer(config, block, cache_slot))
            attention = block["attention"]
            cache_slot += attention["n_heads_in_group"] is not None
        self.layers = nn.ModuleList(layers)
        self.windows = [layer.window for layer in layers]
        self.norm = norm(config)
        self.rotary_emb = family_class(config, "RotaryEmbedding")(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            position_ids = (positions + past).unsqueeze(0)
        masks = layer_masks(
            self.config,
            set(self.windows),
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        streams = []  # where they are asked for; a long prompt's would fill the memory
        for layer, window in zip(self.layers, self.windows):
            streams += [hidden_states] if output_hidden_states else []
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[window],
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                use_cache=use_cache,
                **{CACHE: cache},
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            hidden_states=(*streams, hidden_states) if output_hidden_states else None,
            **{CACHE: cache},
        )


def layer_masks(
    config: Any, windows: set[int | None], *, cache: Cache | None, **context: Any
) -> dict[int | None, Any]:
    """The causal mask of each window length present (None: the whole past)."""
    context[CACHE] = cache
    masks: dict[int | None, Any] = {}
    for window in windows:
        if window is None:
            masks[window] = create_causal_mask(config=config, **context)
        else:
            own = copy.copy(config)
            own.sliding_window = window
            masks[window] = create_sliding_window_causal_mask(config=own, **context)
    return masks


class PuzzleForCausalLM(PuzzlePreTrainedModel, GenerationMixin):
    """A causal language model whose layers differ."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = PuzzleModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        **context: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **context)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # contiguous, or torch reads the head's weight once for every sequence
        logits = self.lm_head(outputs.last_hidden_state[:, kept].contiguous())
        loss = None
        if labels is not None:
            loss = self.loss_function(
                *(logits, labels),
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,  # transformers' trainer counts them
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: outputs.get(CACHE)},
        )


class DeciLMModel(PuzzleModel):
    """A Llama whose layers differ, without its head."""

    config_class = DeciLMConfig


class DeciLMForCausalLM(PuzzleForCausalLM):
    """A Llama whose layers differ."""

    config_class = DeciLMConfig


class PuzzleMistralModel(PuzzleModel):
    """A Mistral whose layers differ, without its head."""

    config_class = PuzzleMistralConfig


class PuzzleMistralForCausalLM(PuzzleForCausalLM):
    """A Mistral whose layers differ."""

    config_class = PuzzleMistralConfig


class PuzzleQwen2Model(PuzzleModel):
    """A Qwen2 or Qwen2.5 whose layers differ, without its head."""

    config_class = PuzzleQwen2Config


class PuzzleQwen2ForCausalLM(PuzzleForCausalLM):
    """A Qwen2 or Qwen2.5 whose layers differ."""

    config_class = PuzzleQwen2Config


class PuzzleQwen3Model(PuzzleModel):
    """A Qwen3 whose layers differ, without its head."""

    config_class = PuzzleQwen3Config


class PuzzleQwen3ForCausalLM(PuzzleForCausalLM):
    """A Qwen3 whose layers differ."""

    config_class = PuzzleQwen3Config


class PuzzleNemotronModel(PuzzleModel):
    """A Nemotron whose layers differ, without its head."""

    config_class = PuzzleNemotronConfig


class PuzzleNemotronForCausalLM(PuzzleForCausalLM):
    """A Nemotron whose layers differ."""

    config_class = PuzzleNemotronConfig


class PuzzleMixtralModel(PuzzleModel):
    """A Mixtral whose layers differ, without its head."""

    config_class = PuzzleMixtralConfig


class PuzzleMixtralForCausalLM(PuzzleForCausalLM):
    """A Mixtral whose layers differ."""

    config_class = PuzzleMixtralConfig


class PuzzleQwen3MoeModel(PuzzleModel):
    """A Qwen3-MoE whose layers differ, without its head."""

    config_class = PuzzleQwen3MoeConfig


class PuzzleQwen3MoeForCausalLM(PuzzleForCausalLM):
    """A Qwen3-MoE whose layers differ."""

    config_class = PuzzleQwen3MoeConfig


class PuzzleGptOssModel(PuzzleModel):
    """A GPT-OSS whose layers differ, without its head."""

    config_class = PuzzleGptOssConfig
    _supports_sdpa = False  # its attention sinks need the scores


class PuzzleGptOssForCausalLM(PuzzleForCausalLM):
    """A GPT-OSS whose layers differ."""

    config_class = PuzzleGptOssConfig
    _supports_sdpa = False  # its attention sinks need the scores
