"""Configurations of models whose layers differ; shipped inside every exported checkpoint.

`block_configs` holds one entry a layer in the format of DeciLM / nemotron-nas, which vLLM,
TensorRT-LLM, SGLang and llama.cpp read. Every other field is that of the parent's own family.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)


class Entry(dict[str, Any]):
    """A mapping whose keys are attributes too: vLLM reads `block.attention.no_op`."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(LlamaConfig):
    """A Llama whose layers differ; the one format that serving engines know by name."""

    model_type = "nemotron-nas"
    block_configs: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.block_configs = [
            Entry({half: Entry(fields) for half, fields in block.items()})
            for block in self.block_configs or []
        ]


class PuzzleMistralConfig(MistralConfig):
    """A Mistral whose layers differ."""

    model_type = "puzzle-mistral"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleQwen2Config(Qwen2Config):
    """A Qwen2 or Qwen2.5 whose layers differ."""

    model_type = "puzzle-qwen2"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleQwen3Config(Qwen3Config):
    """A Qwen3 whose layers differ."""

    model_type = "puzzle-qwen3"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleNemotronConfig(NemotronConfig):
    """A Nemotron whose layers differ."""

    model_type = "puzzle-nemotron"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleMixtralConfig(MixtralConfig):
    """A Mixtral whose layers differ."""

    model_type = "puzzle-mixtral"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleQwen3MoeConfig(Qwen3MoeConfig):
    """A Qwen3-MoE whose layers differ."""

    model_type = "puzzle-qwen3-moe"
    block_configs: list[dict[str, Any]] | None = None


class PuzzleGptOssConfig(GptOssConfig):
    """A GPT-OSS whose layers differ."""

    model_type = "puzzle-gpt-oss"
    block_configs: list[dict[str, Any]] | None = None
