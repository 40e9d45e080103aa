"""What vLLM calls at its start, in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations


def register() -> None:
    """Let vLLM read exported folders without `trust_remote_code`.

    vLLM brings its own model class for the format and takes from us the configuration alone.
    """
    from transformers import AutoConfig

    from puzzle.export.configuration_puzzle import DeciLMConfig

    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
