"""The GGUF file holds what llama.cpp reads; benchmarks/serving runs it there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import parse, random_weights
from gguf import GGUFReader
from gguf.quants import dequantize

from puzzle.errors import PuzzleError
from puzzle.export.gguf import rope_factors, write_gguf
from puzzle.export.rewrite import Child, rewrite
from puzzle.export.tokens import read_vocabulary
from puzzle.parent import Parent, open_parent

BLOCKS = "gqa2+ffn96 linear+noop noop+ffn64 noop+noop gqa1+linear groups2+ffn32"


@pytest.fixture
def embedded() -> Parent:
    return open_parent("embedded")


def written(path: Path, parent: Parent, text: str = BLOCKS) -> tuple[Child, GGUFReader]:
    blocks = parse(text)
    child = Child(parent.config, blocks, random_weights(parent.config, blocks))
    child = rewrite(child, "llama.cpp")
    return child, GGUFReader(write_gguf(path, child, parent.folder))


def field(reader: GGUFReader, name: str) -> Any:
    return reader.get_field(name).contents()


def tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}


def test_every_layer_has_its_heads_and_width(embedded: Parent, tmp_path: Path) -> None:
    _, reader = written(tmp_path / "child.gguf", embedded)
    assert field(reader, "general.architecture") == "deci"
    assert field(reader, "deci.block_count") == 5
    assert field(reader, "deci.attention.head_count") == [4, 4, 0, 4, 2]
    assert field(reader, "deci.attention.head_count_kv") == [2, 0, 0, 1, 2]
    assert field(reader, "deci.feed_forward_length") == [96, 32, 64, 128, 32]
    assert field(reader, "deci.attention.key_length") == 32
    assert [path.name for path in tmp_path.iterdir()] == ["child.gguf"]


def test_tensors_are_the_childs_in_the_files_order(embedded: Parent, tmp_path: Path) -> None:
    child, reader = written(tmp_path / "child.gguf", embedded)
    found = tensors(reader)
    assert len(found) == len(child.weights)
    assert {str(each.tensor_type.name) for each in reader.tensors} == {"BF16", "F32"}
    own = {name: tensor.bfloat16().float().numpy() for name, tensor in child.weights.items()}
    for name, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.layers.1.self_attn.linear_attn.weight", "blk.1.attn_output.weight"),
        ("model.layers.2.mlp.down_proj.weight", "blk.2.ffn_down.weight"),
    ):
        assert np.array_equal(found[theirs], own[name])
    bias = found["blk.3.ffn_gate.bias"]
    assert (bias == 32).all()


def test_queries_and_keys_meet_at_the_same_angles(embedded: Parent, tmp_path: Path) -> None:
    """Rotating neighbors of the file's rows gives the scores of rotating halves of the child's."""
    child, reader = written(tmp_path / "child.gguf", embedded, "gqa2+ffn96")
    angles = torch.rand(16, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(128, generator=torch.Generator().manual_seed(1))

    def halves(rows: torch.Tensor) -> torch.Tensor:
        a, b = (rows @ hidden).view(-1, 32).chunk(2, dim=1)
        return torch.cat(
            [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1
        )

    def neighbors(rows: torch.Tensor) -> torch.Tensor:
        a, b = (rows @ hidden).view(-1, 16, 2).unbind(-1)
        turned = [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]
        return torch.stack(turned, -1).flatten(1)

    found = tensors(reader)
    q, k = (torch.tensor(found[f"blk.0.attn_{half}.weight"]) for half in "qk")
    own = [
        child.weights[f"model.layers.0.self_attn.{half}_proj.weight"].bfloat16() for half in "qk"
    ]
    wanted = halves(own[0].float()) @ halves(own[1].float()).T
    torch.testing.assert_close(neighbors(q) @ neighbors(k).T, wanted)


def test_scaled_frequencies_are_written_as_factors(checkpoints: dict[str, Path]) -> None:
    plain = Parent(checkpoints["llama"], "llama").config
    assert (rope_factors(plain) == 1).all()
    scaled = Parent(checkpoints["llama-tied"], "llama").config
    scaled.rope_parameters = scaled.rope_parameters | {"original_max_position_embeddings": 64}
    factors = rope_factors(scaled)
    assert factors[0] == 1
    assert factors[-1] == 8
    plain.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(PuzzleError, match="scaling 'dynamic' has no place in a GGUF file"):
        rope_factors(plain)


def test_the_vocabulary_is_the_tokenizers(embedded: Parent, tmp_path: Path) -> None:
    _, reader = written(tmp_path / "child.gguf", embedded)
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens == embedded.tokenizer.convert_ids_to_tokens(range(4096))
    assert field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert field(reader, "tokenizer.ggml.token_type")[:2] == [3, 1]
    assert field(reader, "tokenizer.ggml.eos_token_id") == 0
    assert not field(reader, "tokenizer.ggml.add_bos_token")
    assert read_vocabulary(embedded.folder, 4100).kinds[4096:] == [5] * 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"type": "Unigram"}}, "a tokenizer of type Unigram; only byte-level BPE"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by Whitespace in a way that"),
    ],
)
def test_a_tokenizer_without_place_is_one_sentence(
    change: dict[str, Any], sentence: str, embedded: Parent, tmp_path: Path
) -> None:
    folder = tmp_path / "parent"
    shutil.copytree(embedded.folder, folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(said | change))
    with pytest.raises(PuzzleError, match=sentence):
        read_vocabulary(folder, 4096)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PuzzleError, match=r"has no tokenizer\.json"):
        read_vocabulary(folder, 4096)


def test_tensors_that_do_not_make_the_child_are_refused(embedded: Parent, tmp_path: Path) -> None:
    blocks = parse("gqa2+ffn96")
    weights = random_weights(embedded.config, blocks)
    del weights["model.norm.weight"]
    child = Child(embedded.config, blocks, weights)
    with pytest.raises(
        PuzzleError, match="10 tensors do not make the architecture, which holds 11"
    ):
        write_gguf(tmp_path / "child.gguf", child, embedded.folder)
    assert not list(tmp_path.iterdir())
