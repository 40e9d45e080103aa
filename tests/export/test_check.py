"""The check of an exported folder finds what it should, and what it should not be."""

from __future__ import annotations

from pathlib import Path

import pytest
from children import parse, random_weights

from puzzle.architecture import Architecture
from puzzle.errors import PuzzleError
from puzzle.export.check import check
from puzzle.export.checkpoint import write_checkpoint
from puzzle.parent import Parent


def write(folder: Path, parent: Parent, text: str) -> Path:
    weights = random_weights(parent.config, parse(text))
    return write_checkpoint(folder, parent, Architecture("x", parse(text)), weights, card="")


def test_a_folder_is_loaded_and_every_engine_has_its_verdict(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    parent = Parent(checkpoints["llama-tied"], "llama")
    found = dict(check(write(tmp_path / "a", parent, "gqa2+ffn96 linear+ffn96")))
    assert found["Hugging Face"].startswith("loads in a clean process; logits within")
    assert found["vLLM"] == (
        "no: layer 1 holds linear+ffn256, and vLLM knows no linear map in place of a half; "
        "puzzle export --for vllm"
    )
    assert found["llama.cpp"].startswith("no: ")
    assert "has no tokenizer.json" in found["llama.cpp"]
    assert dict(check(write(tmp_path / "b", parent, "gqa2+ffn96")))["vLLM"] == "yes"


def test_a_tokenizer_that_gguf_cannot_say_is_said_here_too(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    parent = Parent(checkpoints["llama"], "llama")
    folder = write(tmp_path / "a", parent, "gqa2+ffn96")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram"}, "added_tokens": []}')
    assert "a tokenizer of type Unigram" in dict(check(folder))["llama.cpp"]


def test_other_families_load_in_hugging_face_alone(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    parent = Parent(checkpoints["qwen3"], "qwen3")
    found = dict(check(write(tmp_path / "a", parent, "gqa2+ffn96 noop+noop")))
    assert found["vLLM"] == "no: models of type puzzle-qwen3 load in Hugging Face alone"


def test_code_that_computes_something_else_is_found(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", Parent(checkpoints["llama"], "llama"), "gqa2+ffn96")
    code = folder / "modeling_puzzle.py"
    code.write_text(code.read_text().replace("hidden_states + output\n", "hidden_states\n"))
    with pytest.raises(PuzzleError, match=r"loads, but its logits are .* from those of Puzzle"):
        dict(check(folder))


def test_a_folder_that_does_not_load_is_one_sentence(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PuzzleError, match="no checkpoint that Puzzle wrote; puzzle export makes"):
        dict(check(tmp_path))
    folder = write(tmp_path / "a", Parent(checkpoints["llama"], "llama"), "gqa2+ffn96")
    (folder / "modeling_puzzle.py").write_text("raise ValueError('broken')\n")
    with pytest.raises(PuzzleError, match="does not load in a clean process: ValueError: broken"):
        dict(check(folder))
