"""One pruning package on one parent in a process of its own: `python quality_peers.py TASK.json`.

The task names the package and its setting, the parent's folder, a safetensors file with the
calibration text (`tokens`, int64 [sequences, tokens]), the share to prune and the folder to write.
What a package finds in the text whatever the share, gradients for Taylor terms and how layers
change the stream, is kept beside it.
Prints one JSON object: parameters and sizes of the pruned model, the layers of the parent that it
keeps where some go, and CPU seconds of this process from the loaded parent to the pruned model,
calibration included (but for what was kept). It imports nothing of ours.

Every setting cuts all layers alike, so that an ordinary Llama checkpoint holds the result:

    torch-pruning taylor     hidden and FFN channels and query heads, by first-order Taylor terms
                             (|weight x gradient|) of the language-modeling loss on the text
    torch-pruning magnitude  the same by the weights alone, as in the package's example
    torch-pruning taylor-ffn FFN channels alone, by Taylor terms
    optipfair width          FFN channels, by range of weights times norm of activations on the text
    optipfair depth          the layers whose output on the text is nearest to their input
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4  # of logits, between the model in memory and its checkpoint
BATCH = 8  # sequences
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MULTIPLE = 4  # of which torch-pruning's example keeps widths
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
)


@dataclass(frozen=True)
class Text:
    """The calibration text."""

    tokens: torch.Tensor  # [sequences, tokens]
    path: Path  # of its file

    def beside(self, kind: str, write: Callable[[Path], Any]) -> Path:
        """The file of something that was found in it, written where it is missing."""
        kept, unfinished = (self.path.with_suffix(f".{end}") for end in (kind, os.getpid()))
        if not kept.exists():
            write(unfinished)
            unfinished.replace(kept)
        return kept

    @property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        """The text as a DataLoader would give it."""
        return [
            {"input_ids": each, "attention_mask": torch.ones_like(each)}
            for each in self.tokens.split(BATCH)
        ]


Importance = Callable[[Any, Any, Text], Any]  # of a package, for a model on a text
Prune = Callable[[Any, Any, Text, float], None]  # with a package, changing the model


def taylor(package: Any, model: Any, text: Text) -> Any:
    """First-order Taylor terms; the model gets the gradients of its loss, summed over sequences."""
    weights = dict(model.named_parameters())

    def gradients(path: Path) -> None:
        for batch in text.tokens.split(BATCH):
            mean = model(batch, labels=batch, use_cache=False).loss
            (mean * len(batch)).backward()
        save_file({name: weight.grad for name, weight in weights.items()}, path)

    for name, gradient in load_file(text.beside("gradients", gradients), DEVICE).items():
        weights[name].grad = gradient
    return package.importance.GroupTaylorImportance()


def magnitude(package: Any, model: Any, text: Text) -> Any:
    """The importance of torch-pruning's example for language models."""
    return package.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")


def whole_width(package: Any, model: Any, text: Text, share: float, importance: Importance) -> None:
    """torch-pruning: the share of hidden and FFN channels, and of query heads what comes nearest.

    Every KV head stays and keeps the same number of its query heads, at least two: the package
    prunes no further. Llama's config wants hidden channels to be a multiple of the query heads, so
    both widths are rounded down to a multiple of these and of 4.
    """
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    removed = min(round(share * group), group - 2)
    heads = {}
    for layer in model.model.layers:
        heads[layer.self_attn.q_proj] = config.num_attention_heads
        heads[layer.self_attn.k_proj] = config.num_key_value_heads
        heads[layer.self_attn.v_proj] = config.num_key_value_heads
    options = {
        "ignored_layers": [model.lm_head],
        "num_heads": heads,
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": removed / group,
        "round_to": math.lcm((group - removed) * config.num_key_value_heads, MULTIPLE),
    }
    _locally(package, model, importance(package, model, text), pruning_ratio=share, **options)


def ffn(package: Any, model: Any, text: Text, share: float) -> None:
    """torch-pruning: the share of FFN channels; a multiple of 4 stays."""
    kept = [model.lm_head, model.model.embed_tokens]
    for layer in model.model.layers:
        kept += [layer.self_attn, layer.mlp.down_proj]
    options = {"ignored_layers": kept, "round_to": MULTIPLE}
    _locally(package, model, taylor(package, model, text), pruning_ratio=share, **options)


def _locally(package: Any, model: Any, importance: Any, **options: Any) -> None:
    """Prune every layer by a ranking of its own, then make the config true."""
    pruner = package.pruner.BasePruner(
        model,
        example_inputs=torch.arange(8, device=model.device)[None],
        forward_fn=lambda model, tokens: model(tokens, use_cache=False).logits,
        importance=importance,
        global_pruning=False,
        **options,
    )
    pruner.step()
    config, layers = model.config, model.model.layers
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = layers[0].mlp.gate_proj.out_features
    config.num_attention_heads = layers[0].self_attn.q_proj.out_features // config.head_dim
    for layer in layers:
        group = config.num_attention_heads // config.num_key_value_heads
        layer.self_attn.num_key_value_groups = group
    model.tie_weights()


def width(package: Any, model: Any, text: Text, share: float) -> None:
    """optipfair: the share of FFN channels, by its default method with calibration text."""
    package.prune_model(
        model,
        pruning_type="MLP_GLU",
        neuron_selection_method="MAW",
        pruning_percentage=100 * share,
        dataloader=text.batches,
        show_progress=False,
    )


def depth(package: Any, model: Any, text: Text, share: float) -> None:
    """optipfair: the share of layers, in whole ones, that its analysis finds least important."""

    def importance(path: Path) -> None:
        found = package.analyze_layer_importance(model, text.batches, show_progress=False)
        path.write_text(json.dumps([float(found[layer]) for layer in range(len(found))]))

    found = json.loads(text.beside("layers.json", importance).read_text())
    least = sorted(range(len(found)), key=found.__getitem__)[: round(share * len(found))]
    package.prune_model(model, pruning_type="DEPTH", layer_indices=least, show_progress=False)
    model.config.kept_layers = [layer for layer in range(len(found)) if layer not in least]


SETTINGS: dict[str, dict[str, Prune]] = {
    "torch-pruning": {
        "taylor": partial(whole_width, importance=taylor),
        "magnitude": partial(whole_width, importance=magnitude),
        "taylor-ffn": ffn,
    },
    "optipfair": {"width": width, "depth": depth},
}


def loaded(folder: str) -> Any:
    """The model of a checkpoint in float32, with attention that torch-pruning can trace."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().to(DEVICE)


def check(model: Any, folder: str, tokens: torch.Tensor) -> None:
    """Raise where the checkpoint has other logits than the model in memory."""
    with torch.no_grad():
        apart = float((loaded(folder)(tokens).logits - model(tokens).logits).abs().max())
    if not apart <= TOLERANCE:
        raise ValueError(f"logits of the checkpoint are {apart:.2g} from those of the model")


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Prune, save and check; the object to print."""
    if not torch.cpu.get_capabilities().get("amx_bf16"):  # then exact, and twice MKL's speed on AMD
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    package = import_module(task["method"].replace("-", "_"))
    prune = SETTINGS[task["method"]][task["setting"]]
    tokens = load_file(task["tokens"])["tokens"].to(DEVICE)
    text = Text(tokens, Path(task["tokens"]))
    model = loaded(task["parent"])
    begin = time.process_time()
    prune(package, model, text, task["share"])
    cpu_s = time.process_time() - begin
    model.save_pretrained(task["out"])
    AutoTokenizer.from_pretrained(task["parent"]).save_pretrained(task["out"])
    check(model, task["out"], tokens[:1])
    sizes = {name: getattr(model.config, name) for name in SIZES}
    kept = getattr(model.config, "kept_layers", [])
    return {"params": model.num_parameters(), "cpu_s": cpu_s, **sizes, "kept_layers": kept}


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):  # what packages print
        found = main(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(found))
