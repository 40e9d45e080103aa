"""The parent opened layer by layer is the parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from puzzle.errors import PuzzleError
from puzzle.modules import build_model, load
from puzzle.parent import Parent, checkpoint_print, open_parent


def test_parent_blocks_reassembled_give_its_logits_bit_for_bit(
    family: str, checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    parent = Parent(checkpoints[family], family)
    model = build_model(parent.config, parent.blocks)
    state = parent.outside_weights()
    for layer in range(parent.shape.layers):
        weights = parent.layer_weights(layer)
        state |= {f"model.layers.{layer}.{name}": tensor for name, tensor in weights.items()}
    load(model, {"lm_head.weight": state[parent.head_name]} | state)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, tiny_model(family)(tokens).logits)


def test_streamed_layers_equal_the_model_run_whole(
    family: str, checkpoints: dict[str, Path], tokens: torch.Tensor
) -> None:
    parent = Parent(checkpoints[family], family)
    hidden = parent.embed(tokens)
    with torch.no_grad():
        for layer in range(parent.shape.layers):
            module = parent.layer(layer)
            hidden = module(hidden, **parent.context(hidden, module.window))
        expected = tiny_model(family)(tokens).logits
        assert torch.equal(parent.head()(hidden), expected)


def test_an_unsupported_family_is_one_sentence_naming_the_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(PuzzleError, match="family 'gpt2'; supported families: llama, mistral"):
        open_parent(str(tmp_path))


def test_nan_in_weights_names_the_tensor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["llama"], tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, :3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PuzzleError, match=rf"{name} holds 3 NaN or infinite values of 6144"):
        open_parent(str(tmp_path / "broken")).layer(1)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"{"])
def test_weights_that_did_not_come_say_so(
    content: bytes, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoints["llama"], tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(content)
    for read in (open_parent, lambda name: checkpoint_print(Path(name), torch.float32)):
        with pytest.raises(PuzzleError, match=r"model\.safetensors is cut off, or only a pointer"):
            read(str(tmp_path / "torn"))


def test_a_missing_tokenizer_says_what_to_add(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(PuzzleError, match=r"has no tokenizer .*put tokenizer\.json"):
        _ = open_parent(str(checkpoints["llama"])).tokenizer


def test_a_folder_that_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(PuzzleError, match=r"has no config\.json"):
        open_parent(str(tmp_path))


def test_a_change_in_the_middle_of_a_checkpoint_is_another_parent(
    tiny_parent: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_parent, copy)
    assert open_parent(str(copy)).fingerprint == open_parent(tiny_parent).fingerprint
    tensors = load_file(copy / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) > 2**20
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[tensor.numel() // 2] += 1
        save_file({**tensors, name: changed}, copy / "model.safetensors", {"format": "pt"})
        assert open_parent(str(copy)).fingerprint != open_parent(tiny_parent).fingerprint, name
