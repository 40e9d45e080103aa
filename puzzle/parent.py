"""The parent: a pretrained causal language model, opened one layer at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from puzzle.device import current
from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import PuzzleLayer, layer_masks, norm
from puzzle.modules import FAMILIES, Weights, build_layer, child_config, load, rotary
from puzzle.shape import Shape
from puzzle.stored import stored

PIECE = 4096  # bytes, of a tensor that a fingerprint looks at
# of a hub's repository; weights may lie there twice, as original/ or consolidated ones too
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*")
UNWANTED = ("*/*.safetensors", "consolidated*")


class Parent:
    """A Hugging Face causal LM in a local folder; holds no weights, reads them when asked.

    `name` is what the user called it, `config` its transformers configuration, `shape` the sizes
    that costs depend on, `blocks` what each of its layers holds, `dtype` that of all arithmetic.
    """

    def __init__(self, folder: Path, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.config = _read_config(folder, name)
        self.shape = Shape.from_config(self.config.to_dict())
        self.blocks = self.shape.blocks
        self._files = _weight_files(folder, name)

    @cached_property
    def tokenizer(self) -> Any:
        """The parent's tokenizer; PuzzleError where the folder has none."""
        return load_tokenizer(self.folder, self.name)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and compute dtype."""
        return checkpoint_print(self.folder, self.dtype)

    def tensors(self, names: Iterable[str]) -> Weights:
        """The named tensors in the compute dtype, on the current device.

        Raises:
            PuzzleError: one is missing, or not finite.
        """
        found = {}
        for name in names:
            if name not in self._files:
                raise PuzzleError(f"{self.name} has no tensor {name}; is the checkpoint complete?")
            with safe_open(self._files[name], framework="pt") as file:
                tensor = file.get_tensor(name).to(current(), self.dtype)
            if not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise PuzzleError(
                    f"{self.name}: tensor {name} holds {bad} NaN or infinite values of "
                    f"{tensor.numel()}; download or convert the checkpoint again"
                )
            found[name] = tensor
        return found

    def layer_weights(self, layer: int) -> Weights:
        """The tensors of one layer, named as inside the layer (`self_attn.q_proj.weight`, ...)."""
        prefix = f"model.layers.{layer}."
        wanted = build_layer(self.config, self.blocks[layer]).state_dict()
        return {name: self._fused(prefix + name, meta.shape) for name, meta in wanted.items()}

    def _fused(self, name: str, shape: torch.Size) -> torch.Tensor:
        """A tensor of a layer; one expert after another where each has its own."""
        first, *others = stored(name, self._files, self.shape.experts)
        if not others:
            return next(iter(self.tensors(first).values()))
        fused = torch.empty(shape, dtype=self.dtype)
        for expert, parts in enumerate([first, *others]):
            fused[expert] = torch.cat(list(self.tensors(parts).values()))
        return fused

    def layer(self, layer: int) -> PuzzleLayer:
        """One layer as the parent has it, frozen."""
        return build_layer(self.config, self.blocks[layer], self.layer_weights(layer))

    @property
    def family(self) -> str:
        """The transformers model type."""
        return str(self.config.model_type)

    @property
    def head_name(self) -> str:
        """The tensor the head multiplies with; the embedding's where they are tied."""
        return "model.embed_tokens.weight" if self.shape.tied else "lm_head.weight"

    @cached_property
    def norm_names(self) -> list[str]:
        """Names of the final norm's tensors."""
        with torch.device("meta"):
            return [
                f"model.norm.{name}"
                for name in norm(child_config(self.config, self.blocks)).state_dict()
            ]

    def outside_weights(self) -> Weights:
        """Embedding, final norm and (untied) head, by their checkpoint names."""
        return self.tensors(
            dict.fromkeys(["model.embed_tokens.weight", *self.norm_names, self.head_name])
        )

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """h_0: the embedded tokens [B, T, D]."""
        name = "model.embed_tokens.weight"
        return nn.functional.embedding(tokens_BT, self.tensors([name])[name])

    def head(self) -> nn.Sequential:
        """Final norm and output projection: hidden states [B, T, D] to logits [B, T, V]."""
        shape = self.shape
        with torch.device("meta"):
            final = norm(child_config(self.config, self.blocks))
            project = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        tensors = self.tensors([*self.norm_names, self.head_name])
        load(final, {name.removeprefix("model.norm."): tensors[name] for name in self.norm_names})
        load(project, {"weight": tensors[self.head_name]})
        return nn.Sequential(final, project)

    def context(self, hidden_BTD: torch.Tensor, window: int | None) -> dict[str, Any]:
        """What a layer with this window needs beside its input: mask and rotary positions."""
        config = child_config(self.config, self.blocks)
        positions = torch.arange(hidden_BTD.shape[1]).unsqueeze(0)
        masks = layer_masks(
            config,
            {window},
            inputs_embeds=hidden_BTD,
            attention_mask=None,
            cache=None,
            position_ids=positions,
        )
        rotated = rotary(config)(hidden_BTD, position_ids=positions)
        return {"attention_mask": masks[window], "position_embeddings": rotated}


def open_parent(model: str, dtype: str = "float32") -> Parent:
    """Open `embedded`, a local folder or a hub id.

    Raises PuzzleError, in one sentence, for a folder without a checkpoint, a family that is not
    supported, a hub id that cannot be had.
    """
    return Parent(checkpoint_folder(model, _read_config), model, _dtype(dtype))


def checkpoint_folder(model: str, check: Callable[[Path, str], Any] | None = None) -> Path:
    """Where `embedded`, a local folder or a hub id lies; PuzzleError where it cannot be had.

    Args:
        check: refuses a folder by its config.json, before weights are downloaded.
    """
    if model == "embedded":
        return Path(str(resources.files("puzzle.data") / "parent"))
    check, local = check or _config_file, Path(model).is_dir()
    check(Path(model) if local else _download(model, "config.json"), model)
    return Path(model) if local else _download(model, *WANTED)


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of a checkpoint; PuzzleError where the folder has none."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise PuzzleError(
            f"{name} has no tokenizer that loads ({_first_line(error)}); "
            "put tokenizer.json and tokenizer_config.json beside config.json"
        ) from None


def checkpoint_print(folder: Path, dtype: torch.dtype) -> str:
    """Identifies a checkpoint: a hash of its config and of pieces of every tensor.

    A file that is not of safetensors is read whole.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    digest.update(str(dtype).encode())
    for path in sorted(folder.glob("*.safetensors")):
        for piece in _pieces(path):
            digest.update(piece)
    for path in sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _torn(path: Path) -> PuzzleError:
    return PuzzleError(f"{path} is cut off, or only a pointer of Git LFS; download it again")


def _pieces(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file, then the beginning, middle and end of each tensor."""
    with path.open("rb") as file:
        length, size = file.read(8), path.stat().st_size
        header = file.read(min(size, int.from_bytes(length, "little")))
        yield header
        start = len(length) + len(header)
        try:
            tensors = json.loads(header)
        except ValueError:
            raise _torn(path) from None
        for name, entry in tensors.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                for place in (first, (first + last - PIECE) // 2, last - PIECE):
                    file.seek(start + max(first, place))
                    yield file.read(min(PIECE, last - first))


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _download(model: str, *wanted: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=[*wanted], ignore_patterns=[*UNWANTED]))
    except Exception as error:
        raise PuzzleError(
            f"model {model!r} is neither a folder here nor a model the hub gives "
            f"({_first_line(error)}); check the spelling or give a folder with config.json"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _config_file(folder: Path, name: str) -> Path:
    path = folder / "config.json"
    if not path.exists():
        raise PuzzleError(
            f"{name} has no config.json; give the folder of a Hugging Face checkpoint"
        )
    return path


def _read_config(folder: Path, name: str) -> Any:
    path = _config_file(folder, name)
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise PuzzleError(f"{path} is not JSON ({error}); copy it from the model again") from None
    if quantized := fields.get("quantization_config"):
        raise PuzzleError(
            f"{name} holds {quantized.get('quant_method')} quantized weights; give the same model "
            "in bfloat16 (load it with dequantization in transformers and save_pretrained)"
        )
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise PuzzleError(
            f"{name} is of the family {family!r}; supported families: {', '.join(FAMILIES)}"
        )
    return AutoConfig.from_pretrained(folder)


def _weight_files(folder: Path, name: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                files |= dict.fromkeys(file.keys(), path)
        except SafetensorError:
            raise _torn(path) from None
    if not files:
        raise PuzzleError(f"{name} has no .safetensors file; convert it with save_pretrained")
    return files
