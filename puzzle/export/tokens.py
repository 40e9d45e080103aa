"""A byte-level BPE tokenizer as llama.cpp wants it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from puzzle.errors import PuzzleError

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5  # kinds of tokens in a GGUF file
LLAMA3_SPLIT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    splitting: str  # llama.cpp's name of the expression that splits text before the merges
    bos: int | None
    eos: list[int]
    adds_bos: bool
    chat_template: str | None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint folder; rows of the embedding without token are unused.

    Raises:
        PuzzleError: no tokenizer.json, not byte-level BPE, or a splitting that llama.cpp lacks.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise PuzzleError(
            f"{folder} has no tokenizer.json, which a GGUF file takes its tokens from"
        )
    said = json.loads(path.read_text(encoding="utf-8"))
    model, added = said["model"], said["added_tokens"]
    if model["type"] != "BPE":
        raise PuzzleError(
            f"{path} holds a tokenizer of type {model['type']}; only byte-level BPE goes "
            "into a GGUF file"
        )
    known = {index: token for token, index in model["vocab"].items()}
    special = {each["id"]: CONTROL if each["special"] else USER for each in added}
    known |= {each["id"]: each["content"] for each in added}
    if max(known) >= size:
        raise PuzzleError(f"{path} has token {max(known)}, the embedding only {size} rows")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, config = tokenizer.bos_token_id, json.loads((folder / "config.json").read_text())
    eos = config.get("eos_token_id")
    template = tokenizer.chat_template
    return Vocabulary(
        tokens=[known.get(index, f"[unused {index}]") for index in range(size)],
        kinds=[special.get(i, NORMAL) if i in known else UNUSED for i in range(size)],
        merges=[each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        splitting=_splitting(path, said["pre_tokenizer"]),
        bos=bos,
        eos=eos if isinstance(eos, list) else [] if eos is None else [eos],
        adds_bos=tokenizer("a")["input_ids"][:1] == [bos],
        chat_template=template if isinstance(template, str) else None,
    )


def _splitting(path: Path, said: dict[str, Any] | None) -> str:
    """llama.cpp's name of how a tokenizer splits text before it merges bytes."""
    steps = said["pretokenizers"] if said and said["type"] == "Sequence" else [said or {}]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"]["Regex"].startswith(LLAMA3_SPLIT):
        return "llama-bpe"
    raise PuzzleError(
        f"{path} splits text by {' and '.join(map(str, kinds))} in a way that llama.cpp has no "
        "name for; GPT-2's, SmolLM's and Llama 3's are known"
    )
