"""Text in, packed token batches out: three disjoint splits of any source.

A source is `embedded`, a text file (`.txt`, `.md`, ...), a folder of them, a `.jsonl` or
`.parquet` file whose rows hold `text` or `messages` (rendered with the parent's chat template),
or the name of a hub dataset. Every document falls into one split by a hash of its text, so the
same text never serves two purposes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

import torch

from puzzle.errors import PuzzleError

SHARES = {"evaluation": 5, "scoring": 5}  # percent of the documents; calibration has the rest
LONGEST = 8000  # characters of a document; longer texts are cut at paragraphs or lines
CHARACTERS = 16  # of a hub dataset, which may have no end, that are read for a token
BUFFER = 10_000  # of its rows that are shuffled at a time
SEPARATOR = "\x1e"  # between documents of the embedded corpus
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".html")


@dataclass(frozen=True)
class Item:
    """A multiple-choice question: which word has this definition."""

    kind: str  # noun, verb, adjective, adverb
    definition: str
    choices: tuple[str, ...]
    answer: int


def accuracy_items() -> list[Item]:
    """WordNet definitions with four words each; their synsets stand in no embedded text."""
    packed = resources.files("puzzle.data").joinpath("wordnet_test.jsonl.xz").read_bytes()
    rows = map(json.loads, lzma.decompress(packed).decode().splitlines())
    return [Item(**{**row, "choices": tuple(row["choices"])}) for row in rows]


def splits(
    source: str,
    tokenizer: Any,
    *,
    length: int,
    tokens: Mapping[str, int],
    seed: int,
    at_most: bool = False,
) -> dict[str, torch.Tensor]:
    """Token ids [S, T] of each split that `tokens` names, whole sequences of `length` tokens.

    Documents are shuffled by the seed, tokenized as far as needed, joined by the end-of-text
    token and cut. The tokens asked for, rounded down to whole sequences, but one at least.

    Args:
        at_most: a source with less gives what it has, as long as that is a sequence.

    Raises:
        PuzzleError: too little text, with what was found and what was asked for.
    """
    if tokenizer.eos_token_id is None:
        raise PuzzleError("the tokenizer has no end-of-text token; set eos_token in its config")
    pools: dict[str, list[str]] = {name: [] for name in tokens}
    lacking = {name: CHARACTERS * max(count, length) for name, count in tokens.items()}
    for document in documents(source, tokenizer):
        if (split := split_of(document)) in pools:
            pools[split].append(document)
            lacking[split] -= len(document)
            if _on_hub(source) and max(lacking.values()) <= 0:
                break
    asked = {name: (max(1, count // length), seed) for name, count in tokens.items()}
    return {
        name: _pack(name, pools[name], tokenizer, length, amount, at_most=at_most)
        for name, amount in asked.items()
    }


def split_of(document: str) -> str:
    """The split a document belongs to, by a hash of its text."""
    place = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "calibration"


def documents(source: str, tokenizer: Any = None) -> Iterator[str]:
    """The documents of a source, none longer than some 8 kB.

    Raises:
        PuzzleError: a source that is not there, or rows without text.
    """
    for text in _texts(source, tokenizer):
        yield from _cut(text)


def digest(tokens: torch.Tensor) -> str:
    """Identifies token ids by a hash of their shape and values."""
    content = tokens.long().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(str(tuple(tokens.shape)).encode() + content).hexdigest()[:16]


def _texts(source: str, tokenizer: Any) -> Iterator[str]:
    path = Path(source)
    if source == "embedded":
        yield from _embedded()
    elif path.exists():
        for file in _files(path):
            yield from _READERS.get(file.suffix, _read_text)(file, tokenizer)
    elif _on_hub(source):
        yield from _hub(source, tokenizer)
    else:
        raise PuzzleError(f"there is no file {source}; check --data")


def _on_hub(source: str) -> bool:
    """Whether a source is nothing that lies here, nor named like it."""
    path, files = Path(source), (*_READERS, *TEXT_SUFFIXES)
    return source != "embedded" and not path.exists() and path.suffix not in files


def _embedded() -> Iterator[str]:
    folder = resources.files("puzzle.data").joinpath("corpus")
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        yield from lzma.decompress(file.read_bytes()).decode().split(SEPARATOR)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    wanted = (*_READERS, *TEXT_SUFFIXES)
    files = sorted(file for file in path.rglob("*") if file.suffix in wanted)
    if not files:
        raise PuzzleError(f"{path} holds no text; put {', '.join(wanted)} files there")
    return files


@contextlib.contextmanager
def _utf8(file: Path) -> Iterator[TextIO]:
    try:
        with file.open(encoding="utf-8") as text:
            yield text
    except UnicodeDecodeError:
        raise PuzzleError(f"{file} is not UTF-8 text; convert it") from None


def _read_text(file: Path, tokenizer: Any) -> Iterator[str]:
    with _utf8(file) as text:
        yield text.read()


def _read_jsonl(file: Path, tokenizer: Any) -> Iterator[str]:
    with _utf8(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise PuzzleError(f"{file} line {number} is not JSON: {error}") from None
                yield _row_text(row, tokenizer, f"{file} line {number}")


def _read_parquet(file: Path, tokenizer: Any) -> Iterator[str]:
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise PuzzleError(f"{file} is not a parquet file that reads: {reason}") from None
    for number, row in enumerate(frame.to_dict("records")):
        yield _row_text(row, tokenizer, f"{file} row {number}")


_READERS: dict[str, Callable[[Path, Any], Iterator[str]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _hub(source: str, tokenizer: Any) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise PuzzleError(
            f"{source} is no file here, and reading hub datasets needs another package; "
            "run pip install 'puzzle-nas[data]', or give a file"
        ) from None
    try:
        rows = datasets.load_dataset(source, split="train", streaming=True)
        for number, row in enumerate(rows.shuffle(seed=0, buffer_size=BUFFER)):
            yield _row_text(row, tokenizer, f"{source} row {number}")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PuzzleError(
            f"{source} is no file here and no dataset the hub gives: {reason}"
        ) from None


def _row_text(row: Any, tokenizer: Any, where: str) -> str:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if messages is None:
        raise PuzzleError(f"{where} has neither `text` nor `messages`")
    if not getattr(tokenizer, "chat_template", None):
        raise PuzzleError(
            f"{where} holds messages, but the parent's tokenizer has no chat template; give `text`"
        )
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except TemplateError as error:
        raise PuzzleError(f"{where}: the parent's chat template refuses it: {error}") from None


def _cut(text: str) -> Iterator[str]:
    """A document as it is when short, else pieces of up to LONGEST characters at paragraphs."""
    held = ""
    for part in re.split(r"(?<=\n\n)", text) if len(text) > LONGEST else [text]:
        for start in range(0, len(part), LONGEST):
            piece = part[start : start + LONGEST]
            if held and len(held) + len(piece) > LONGEST:
                yield held
                held = ""
            held += piece
    if held.strip():
        yield held


def _pack(
    name: str,
    pool: list[str],
    tokenizer: Any,
    length: int,
    amount: tuple[int, int],
    *,
    at_most: bool,
) -> torch.Tensor:
    """Join shuffled documents and cut; `amount` is the sequences wanted and the seed."""
    count, seed = amount
    random.Random(seed).shuffle(pool)
    flat: list[int] = []
    for start in range(0, len(pool), 64):
        if len(flat) >= count * length:
            break
        texts = pool[start : start + 64]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        flat += [token for row in rows for token in (*row, tokenizer.eos_token_id)]
    if len(flat) < count * length:
        enough = len(flat) // length * length
        if at_most and enough:
            return torch.tensor(flat[:enough]).reshape(-1, length)
        less = f", or ask for less with --set tokens.{name}={enough}" if enough else ""
        raise PuzzleError(
            f"the {name} split has {len(flat)} tokens of text in {len(pool)} documents and needs "
            f"{count * length}; give more text with --data{less}"
        )
    return torch.tensor(flat[: count * length]).reshape(count, length)
