"""Our models known to transformers by name, so that no `trust_remote_code` is needed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from puzzle.device import current
from puzzle.errors import PuzzleError
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


def load_checkpoint(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model of a folder, a child of ours or any other; `auto` is the dtype it is stored in.

    Raises:
        PuzzleError: it does not load.
    """
    register()
    try:
        with torch.device("cpu"):  # to load elsewhere, transformers wants another package
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.eval().to(current())
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PuzzleError(f"{folder} is no checkpoint that loads: {reason}") from None
