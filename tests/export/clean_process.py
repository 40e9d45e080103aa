"""Load exported folders as a user's program would; run by test_checkpoint.py in its own process.

Reads a request (JSON: folders, whether to register, where to save models again), writes for every
folder what it measured. Without `register` nothing of Puzzle may be imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

PROMPT, LENGTH = 5, 12  # of the generations; of the batch whose cache is measured


def main(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `measure` says of every folder, by its name."""
    early = request["register"] and register_ours()
    expected = load_file(request["expected"])
    found = {}
    for folder in map(Path, request["folders"]):
        trust = not request["register"]
        model = load(AutoModelForCausalLM, folder, trust)
        found[folder.name] = measure(model, expected["tokens"], expected[folder.name])
        if trust:
            found[folder.name] |= generate(model, expected["tokens"])
        if folder.name in request["again"]:
            found[folder.name] |= again(model, folder, trust)
        if (folder / "tokenizer.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
            found[folder.name]["ids"] = tokenizer("a cat sat")["input_ids"]
    found["process"] = {"puzzle": "puzzle" in sys.modules, "registered_early": early}
    return found


def register_ours() -> bool:
    """Register Puzzle's classes, twice; returns whether importing them had already done it."""
    from puzzle.export import register

    early = "nemotron-nas" in CONFIG_MAPPING
    register.register()
    register.register()
    return early


def load(auto: Any, folder: Path, trust: bool) -> Any:
    """A model in float32, with code from its folder or with the registered classes."""
    kwargs = {"trust_remote_code": True} if trust else {}
    return auto.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


@torch.no_grad()
def measure(model: Any, tokens: torch.Tensor, logits: torch.Tensor) -> dict[str, Any]:
    """How far the logits [B, T, V] are from the expected; the class and its sizes."""
    cache = model(tokens[:, :LENGTH], use_cache=True).cache
    return {
        "module": type(model).__module__,
        "error": difference(model(tokens).logits, logits),
        "kv_bytes": sum(
            part.numel() * part.element_size()
            for layer in cache.layers
            if layer.keys is not None
            for part in (layer.keys, layer.values)
        ),
        "parameters": model.num_parameters(),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    }


@torch.no_grad()
def generate(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Greedy tokens with the cache, without, and left padded; how far stepwise logits are."""
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    prompt, batch = tokens[:, :PROMPT], tokens[:, :LENGTH]
    padded = torch.nn.functional.pad(prompt, (3, 0))
    mask = (torch.arange(PROMPT + 3) >= 3).long().expand(len(tokens), -1)
    cached = model.generate(prompt, use_cache=True, **greedy)
    left = model.generate(padded, attention_mask=mask, use_cache=True, **greedy)
    return {
        "cached": cached.tolist(),
        "uncached": model.generate(prompt, use_cache=False, **greedy).tolist(),
        "left_padded": left[:, 3:].tolist(),
        "stepwise_error": difference(stepwise(model, batch), model(batch).logits),
    }


def stepwise(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] with the tokens fed through the cache: a prompt, then one at a time."""
    outputs = model(tokens[:, :PROMPT], use_cache=True)
    logits = [outputs.logits]
    for position in range(PROMPT, tokens.shape[1]):
        step = tokens[:, position : position + 1]
        outputs = model(step, cache=outputs.cache, use_cache=True)
        logits.append(outputs.logits)
    return torch.cat(logits, dim=1)


def again(model: Any, folder: Path, trust: bool) -> dict[str, Any]:
    """Save the loaded model beside its folder and load that; the bare model too."""
    saved = folder.with_name(f"{folder.name}-again")
    model.save_pretrained(saved)
    tokens = torch.arange(8)[None]
    logging.set_verbosity_error()  # the bare model reports that it leaves the head
    bare = load(AutoModel, folder, trust)
    logging.set_verbosity_warning()
    with torch.no_grad():
        hidden = bare(tokens).last_hidden_state
        return {
            "again_error": difference(
                load(AutoModelForCausalLM, saved, trust)(tokens).logits, model(tokens).logits
            ),
            "bare_error": difference(hidden, model.model(tokens).last_hidden_state),
        }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).abs().max())


if __name__ == "__main__":
    logging.disable_progress_bar()
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["out"]).write_text(json.dumps(main(asked)))
