"""Configurations of models whose layers differ; shipped inside every exported checkpoint.

`block_configs` holds one entry a layer in the format of DeciLM / nemotron-nas, which vLLM,
TensorRT-LLM, SGLang and llama.cpp read. Every other field is that of the parent's own family.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, MistralConfig, NemotronConfig, Qwen2Config, Qwen3Config


class DeciLMConfig(LlamaConfig):
    """A Llama whose layers differ; the one format that serving engines know by name."""

    model_type = "nemotron-nas"
    block_configs: list[dict[str, Any]] | None = None


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
