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
from transformers.utils import logging

PROMPT, LENGTH = 5, 12  # of the generations; of the batch whose cache is measured


def main(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `measure` says of every folder, by its name."""
    if request["register"]:
        from puzzle.export.register import register

        register()
        register()
    expected = load_file(request["expected"])
    found = {}
    for folder in map(Path, request["folders"]):
        trust = not request["register"]
        model = load(AutoModelForCausalLM, folder, trust)
        found[folder.name] = measure(model, expected["tokens"], expected[folder.name])
        if folder.name in request["again"]:
            found[folder.name] |= again(model, folder, trust)
        if (folder / "tokenizer.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
            found[folder.name]["ids"] = tokenizer("a cat sat")["input_ids"]
    found["process"] = {"puzzle": sorted(name for name in sys.modules if name == "puzzle")}
    return found


def load(auto: Any, folder: Path, trust: bool) -> Any:
    """A model in float32, with code from its folder or with the registered classes."""
    kwargs = {"trust_remote_code": True} if trust else {}
    return auto.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


@torch.no_grad()
def measure(model: Any, tokens: torch.Tensor, logits: torch.Tensor) -> dict[str, Any]:
    """How far the logits [B, T, V] are from the expected; caches, sizes, generations."""
    batch = tokens[:, :LENGTH]
    cache = model(batch, use_cache=True).cache
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    padded = torch.nn.functional.pad(tokens[:1, :PROMPT], (3, 0))
    mask = (torch.arange(PROMPT + 3) >= 3).long()[None]
    one = model.generate(tokens[:1, :PROMPT], use_cache=True, **greedy)
    left = model.generate(padded, attention_mask=mask, use_cache=True, **greedy)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "error": difference(model(tokens).logits, logits),
        "stepwise_error": difference(stepwise(model, batch), model(batch).logits),
        "cached": model.generate(tokens[:, :PROMPT], use_cache=True, **greedy).tolist(),
        "uncached": model.generate(tokens[:, :PROMPT], use_cache=False, **greedy).tolist(),
        "left_padding_equal": left[0, 3:].tolist() == one[0].tolist(),
        "kv_bytes": sum(
            part.numel() * part.element_size()
            for layer in cache.layers
            if layer.keys is not None
            for part in (layer.keys, layer.values)
        ),
        "parameters": model.num_parameters(),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
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
