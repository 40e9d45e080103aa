"""Make transformers know our models by name, so that no `trust_remote_code` is needed."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from puzzle.export import configuration_puzzle, modeling_puzzle
from puzzle.modules import FAMILIES


def register() -> None:
    """Register every family's classes with the Auto classes; again is harmless.

    A model loaded this way still takes its code along in `save_pretrained`, so that what it writes
    loads where Puzzle is not installed.
    """
    for config_name, model_name in FAMILIES.values():
        config = getattr(configuration_puzzle, config_name)
        bare = getattr(modeling_puzzle, model_name.replace("ForCausalLM", "Model"))
        model = getattr(modeling_puzzle, model_name)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, bare, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        bare.register_for_auto_class("AutoModel")
        model.register_for_auto_class("AutoModelForCausalLM")
