"""A pruned model: in memory as the search's models are, on disk as a checkpoint of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puzzle.baselines.minitron.cut import Cut
from puzzle.config import Heal
from puzzle.export.checkpoint import (
    copy_parent_files,
    legacy_rope,
    replacing,
    stored_dtype,
    tensor_bytes,
    write_json,
    write_weights,
)
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.modules import Weights, build_model, load
from puzzle.parent import Parent
from puzzle.shape import Shape

MARK = "pruned.json"  # says that the folder is one that may be replaced


def model_of(config: Any, weights: Weights) -> PuzzleForCausalLM:
    """A model of the parent's family with these tensors, frozen; a tied head is not among them."""
    shape = Shape.from_config(config.to_dict())
    model = build_model(config, shape.blocks)
    head = weights["model.embed_tokens.weight" if shape.tied else "lm_head.weight"]
    load(model, {**weights, "lm_head.weight": head})
    if shape.tied:
        model.tie_weights()
    return model


def write_pruned(folder: Path, parent: Parent, cut: Cut, weights: Weights) -> Path:
    """Write the checkpoint of a cut, in the dtype of the parent's; returns `folder`.

    It is an ordinary one of the parent's family: transformers and engines load it without code of
    ours, and `puzzle search --model` opens it. The folder appears whole or not at all.

    Raises:
        PuzzleError: the folder holds something else, or the disk is full.
    """
    config = cut.config(parent.config)
    config.dtype = stored_dtype(parent.config)
    layout = {name: tensor.to("meta", config.dtype) for name, tensor in weights.items()}
    size = sum(map(tensor_bytes, layout.values()))
    with replacing(folder, size, mark=MARK) as new:
        config.save_pretrained(new)
        path = new / "config.json"
        written = json.loads(path.read_text())
        older = {"torch_dtype": written["dtype"], **legacy_rope(config.rope_parameters)}
        write_json(path, written | older)  # for readers that follow transformers 4
        write_weights(new, weights, layout)
        copy_parent_files(parent, new)
        mark = {"parent": parent.name, "cut": str(cut), "layers": cut.layers}
        (new / MARK).write_text(json.dumps(mark) + "\n")
    return folder


def taught_by(options: Heal, folder: Path, teacher: str | None) -> Heal:
    """The options of healing what was cut from `teacher`: they name the layers it still has."""
    if teacher is None or options.layers:
        return options
    return options.model_copy(update={"layers": kept_layers(folder, teacher)})


def kept_layers(folder: Path, model: str) -> tuple[int, ...]:
    """The layers of the model that a checkpoint cut from it holds; none if cut from another."""
    path = folder / MARK
    if not path.exists():
        return ()
    mark = json.loads(path.read_text())
    layers: list[int] = mark.get("layers", [])
    parent = Path(mark["parent"])
    if parent.resolve() == Path(model).resolve():  # however it is spelled; a hub id is itself
        return tuple(layers)
    below = kept_layers(parent, model)
    return tuple(below[layer] for layer in layers) if below else ()
