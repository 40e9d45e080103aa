"""The parent opened layer by layer is the parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
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


@pytest.fixture
def hub(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub holds as someone/llama; what is downloaded lies in `cache` beside it."""
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    shutil.copytree(checkpoints["llama"], repository)
    (repository / "original").mkdir()
    for name in ("LICENSE", "NOTICE", "consolidated.safetensors", "original/model.safetensors"):
        (repository / name).write_text(name)

    def snapshot_download(model: str, **patterns: list[str]) -> str:
        assert model == "someone/llama"
        paths = [path for path in repository.rglob("*") if path.is_file()]
        names = [str(path.relative_to(repository)) for path in paths]
        for name in filter_repo_objects(names, **patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return repository


def test_of_a_hub_parent_come_its_licence_and_its_weights_once(hub: Path) -> None:
    assert open_parent("someone/llama").family == "llama"
    got = {path.name for path in (hub.parent / "cache").rglob("*")}
    assert got == {
        "LICENSE",
        "NOTICE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gpt2"}, "of the family 'gpt2'; supported families: llama"),
        ({"quantization_config": {"quant_method": "fp8"}}, "holds fp8 quantized weights"),
        (None, r"has no config\.json"),
    ],
)
def test_a_hub_parent_is_refused_before_its_weights_come(
    hub: Path, fields: dict[str, object] | None, sentence: str
) -> None:
    path = hub / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    if fields:
        path.write_text(json.dumps({**config, **fields}))
    with pytest.raises(PuzzleError, match=sentence):
        open_parent("someone/llama")
    assert not list((hub.parent / "cache").rglob("*.safetensors"))


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
