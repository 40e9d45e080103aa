"""Write a child as a checkpoint folder that Hugging Face and vLLM load as it is.

Llama children take the DeciLM format (`nemotron-nas`), which vLLM, TensorRT-LLM, SGLang and
llama.cpp read: FFN widths are padded to a multiple of 256 with channels of zero weight, which add
exactly nothing. Children of other families are loaded by the modeling files in the folder. The
folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig

from puzzle.architecture import Architecture
from puzzle.blocks.variant import FFN, Block
from puzzle.errors import PuzzleError
from puzzle.export import configuration_puzzle, modeling_puzzle
from puzzle.export.rewrite import Child, rewrite
from puzzle.export.targets import Target, served
from puzzle.modules import FAMILIES, Weights, build_model, child_config
from puzzle.parent import Parent

SHARD_BYTES = 5 * 10**9  # Hugging Face's own limit of one file
CODE = (configuration_puzzle, modeling_puzzle)
CODE_FILES = tuple(Path(str(module.__file__)) for module in CODE)
PARENT_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)


def write_checkpoint(
    folder: Path,
    parent: Parent,
    architecture: Architecture,
    weights: Weights,
    *,
    card: str,
    target: Target = "hf",
) -> Path:
    """Write the child as `folder`, replacing an earlier export there; returns `folder`.

    Numbers are stored as the parent's checkpoint stores its own (`dtype` in its config.json;
    bfloat16 where it does not say), whatever the dtype of the search: the child is as large per
    parameter as the parent it replaces, and a float32 parent loses nothing.

    Args:
        weights: every tensor of the child by checkpoint name, as `assemble.gather` gives them.
        card: the text of README.md.
        target: the engine whose missing block types are expressed in others (rewrite.py).

    Raises:
        PuzzleError: tensors that do not make this architecture, a block that the engine cannot
            have, a folder that holds anything but an earlier export, a full disk.
    """
    child = rewrite(Child(parent.config, architecture.blocks, weights), target)
    config = child.config
    blocks = tuple(served(config.model_type, block) for block in child.blocks)
    layout = tensor_layout(config, blocks)
    stored = _fit(child.weights, layout)
    with replacing(folder, sum(map(tensor_bytes, layout.values()))) as new:
        write_json(new / "config.json", _config_json(config, blocks))
        write_weights(new, stored, layout)
        copy_parent_files(parent, new)
        for path in CODE_FILES:
            shutil.copyfile(path, new / path.name)
        (new / "README.md").write_text(card)
    return folder


def stored_dtype(config: Any) -> torch.dtype:
    """The dtype of the parent's checkpoint, and so of the child's."""
    return config.dtype or torch.bfloat16


def tensor_layout(config: Any, blocks: tuple[Block, ...]) -> Weights:
    """Name, shape and dtype of every tensor of the folder, as meta tensors in checkpoint order."""
    model = build_model(config, blocks).to(stored_dtype(config))
    layout = dict(model.state_dict())
    if config.tie_word_embeddings:
        del layout["lm_head.weight"]
    return layout


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Size of a tensor in the file."""
    return tensor.numel() * tensor.element_size()


def _fit(weights: Weights, layout: Weights) -> Weights:
    """The tensors in the order and shapes of `layout`, FFN channels padded with zeros.

    Tensors that fit already are the caller's own, so nothing large is copied.
    """
    if missing := layout.keys() - weights.keys():
        raise PuzzleError(
            f"the child lacks {len(missing)} of {len(layout)} tensors, {min(missing)} the first; "
            "assemble it from the same architecture that is exported"
        )
    if extra := weights.keys() - layout.keys():
        raise PuzzleError(
            f"the architecture has no place for {len(extra)} of {len(weights)} tensors, "
            f"{min(extra)} the first; assemble the child from the architecture that is exported"
        )
    return {name: _pad(name, weights[name], wanted.shape) for name, wanted in layout.items()}


def _pad(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The tensor with zeros behind it up to `shape`: exact for FFN channels, refused elsewhere.

    A padded channel has gate, up and bias 0, so silu(0) 0 = 0 enters a column of zeros of down.
    """
    if tensor.shape == shape:
        return tensor
    room = [wanted - given for wanted, given in zip(shape, tensor.shape)]
    if ".mlp." not in name or tensor.dim() != len(shape) or min(room) < 0:
        raise PuzzleError(
            f"tensor {name} has shape {list(tensor.shape)}, the architecture needs "
            f"{list(shape)}; assemble the child from the architecture that is exported"
        )
    # torch counts the padding from the last dimension, before and after
    sides = [side for size in reversed(room) for side in (0, size)]
    return nn.functional.pad(tensor, sides)


def _config_json(parent_config: Any, blocks: tuple[Block, ...]) -> dict[str, Any]:
    """The config.json of a child: the parent's fields, `block_configs`, and where its code lies.

    Written by us, because `save_pretrained` of transformers 5 drops the names that transformers 4
    and older engines read: `rope_theta`, `rope_scaling`, `torch_dtype`. Fields that vary by layer
    (`num_key_value_heads`, `intermediate_size`) keep the parent's value; `block_configs` decides.
    """
    config_name, model_name = FAMILIES[parent_config.model_type]
    config = child_config(parent_config, blocks)
    fields = config.to_diff_dict()
    fields.pop("_name_or_path", None)
    dtype = str(stored_dtype(config)).removeprefix("torch.")
    return {
        **fields,
        **legacy_rope(config.rope_parameters),
        "architectures": [model_name],
        "auto_map": {
            "AutoConfig": f"configuration_puzzle.{config_name}",
            "AutoModel": f"modeling_puzzle.{model_name.replace('ForCausalLM', 'Model')}",
            "AutoModelForCausalLM": f"modeling_puzzle.{model_name}",
        },
        "block_configs": [
            {
                "attention": dict(entry["attention"]),
                "ffn": _ffn_entry(config, block, entry["ffn"]),
            }
            for block, entry in zip(blocks, config.block_configs)
        ],
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _ffn_entry(config: Any, block: Block, entry: dict[str, Any]) -> dict[str, Any]:
    """The FFN entry of one layer as it is read back: DeciLM gives the width by `ffn_mult` alone.

    Readers take int(2 ffn_mult hidden / 3), rounded up to a multiple of 256; with the width such a
    multiple the rounding also undoes any error of the division.
    """
    if config.model_type != "nemotron-nas":
        return dict(entry)
    fields = {key: value for key, value in entry.items() if key != "intermediate_size"}
    if isinstance(block.ffn, FFN):
        fields["ffn_mult"] = 3 * block.ffn.intermediate_size / (2 * config.hidden_size)
    return fields


def legacy_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `partial_rotary_factor` as transformers 4 named them."""
    outside = ("rope_theta", "partial_rotary_factor")
    scaling = {key: value for key, value in rope.items() if key not in outside}
    plain = scaling.get("rope_type", "default") == "default"
    fields = {name: rope[name] for name in outside if name in rope}
    return fields | {"rope_scaling": None if plain else scaling}


def write_weights(
    folder: Path, tensors: Weights, layout: Weights, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors, sharded where large; one shard at a time is converted to its dtype."""
    split = split_torch_state_dict_into_shards(layout, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].to(layout[name].dtype).contiguous() for name in names}
        save_file(shard, folder / file, {"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors shuts others out
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def copy_parent_files(parent: Parent, folder: Path) -> None:
    """Copy tokenizer, chat templates, generation defaults and licence of the parent."""
    for pattern in PARENT_FILES:
        for path in filter(Path.is_file, parent.folder.glob(pattern)):
            target = folder / path.relative_to(parent.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if not (folder / "generation_config.json").exists():
        GenerationConfig.from_model_config(parent.config).save_pretrained(folder)


def write_json(path: Path, data: Any) -> None:
    """Write JSON as people read it."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def replacing(folder: Path, size: int, *, mark: str = CODE_FILES[0].name) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place once the block is done.

    A process killed inside leaves `folder` as it was, and a hidden sibling that the next write
    removes. Killed between the two renames it leaves the earlier export hidden; the next write
    puts it back first.
    """
    folder = folder.resolve()  # `.` has no name
    _refuse_to_replace(folder, mark)
    new, old = (folder.with_name(f".{folder.name}.{role}") for role in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    try:
        for stale in (new, old):
            shutil.rmtree(stale, ignore_errors=True)
        new.mkdir(parents=True)
        if size > shutil.disk_usage(new).free:
            raise OSError(errno.ENOSPC, "")
        yield new
        _sync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise PuzzleError(
            f"out of disk: {folder} needs {size / 2**20:.1f} MiB and "
            f"{shutil.disk_usage(new.parent).free / 2**20:.1f} MiB are free; make room and run the "
            "same command again, nothing done so far is lost"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _refuse_to_replace(folder: Path, mark: str) -> None:
    """PuzzleError where `folder` holds anything but an earlier export."""
    if not folder.exists() or (folder / mark).exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise PuzzleError(
            f"{folder} exists and is no checkpoint that Puzzle wrote; choose another folder"
        )


def _sync(folder: Path) -> None:
    """Have every file below `folder`, and the folder itself, on disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
