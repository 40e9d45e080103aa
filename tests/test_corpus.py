"""Text becomes three disjoint, repeatable splits, whatever it comes in; no answer stands in it."""

from __future__ import annotations

import copy
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from puzzle.corpus import LONGEST, accuracy_items, documents, split_of, splits
from puzzle.errors import PuzzleError
from puzzle.parent import open_parent

ASKED = {"calibration": 2048, "scoring": 256, "evaluation": 256}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
MESSAGES = [
    [{"role": "user", "content": f"How much is {n} and one?"}, {"role": "it", "content": str(n)}]
    for n in range(3)
]
RENDERED = [f"<user>How much is {n} and one?<it>{n}" for n in range(3)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_parent("embedded").tokenizer


@pytest.fixture(scope="module")
def embedded() -> list[str]:
    return list(documents("embedded"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 text files of a few hundred different words."""
    for number in range(120):
        words = " ".join(f"word{number * place % 997}" for place in range(1, 200))
        (tmp_path / f"{number:03}.txt").write_text(words)
    return tmp_path


def cut(
    source: str | Path, tokenizer: Any, seed: int = 0, **tokens: int
) -> dict[str, torch.Tensor]:
    return splits(str(source), tokenizer, length=64, tokens=tokens or ASKED, seed=seed)


@pytest.mark.parametrize("source", ["embedded", "folder"])
def test_splits_have_the_tokens_asked_for_and_the_seed_decides_which(
    source: str, folder: Path, tokenizer: Any
) -> None:
    place = folder if source == "folder" else source
    first, again, other = (cut(place, tokenizer, seed) for seed in (0, 0, 1))
    for name, count in ASKED.items():
        assert first[name].shape == (count // 64, 64)
        assert first[name].dtype == torch.long
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_a_split_does_not_depend_on_the_others(folder: Path, tokenizer: Any) -> None:
    alone = cut(folder, tokenizer, scoring=256)["scoring"]
    assert torch.equal(alone, cut(folder, tokenizer)["scoring"])


def test_splits_are_disjoint(embedded: list[str], tokenizer: Any) -> None:
    """No long passage of one split stands in another, however the sequences are cut."""
    cutting = cut("embedded", tokenizer)
    texts = {name: tokenizer.batch_decode(rows) for name, rows in cutting.items()}
    pools: dict[str, list[str]] = {name: [] for name in texts}
    for document in embedded:
        pools[split_of(document)].append(document)
    assert all(pools.values())
    assert sum(map(len, pools.values())) == len(embedded)
    joined = {name: "\x1e".join(pool) for name, pool in pools.items()}
    for name, rows in texts.items():
        inside = [part for row in rows for part in row.split("<|endoftext|>") if len(part) > 60]
        assert inside
        for other, pool in joined.items():
            assert all((part in pool) == (other == name) for part in inside[:6])


def test_a_repeated_document_serves_one_purpose() -> None:
    assert {split_of("the same text") for _ in range(3)} == {split_of("the same text")}
    shares = Counter(split_of(f"document {number}") for number in range(4000))
    assert 150 < shares["evaluation"] < 250
    assert 150 < shares["scoring"] < 250


def test_files_of_every_kind_give_the_same_documents(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["one text\n\nwith paragraphs", "another: é, 中"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    rows = "\n\n".join(json.dumps({"text": text, "id": 1}) for text in texts)
    (tmp_path / "rows.jsonl").write_text(rows + "\n")
    pd.DataFrame({"id": [1, 2], "text": texts}).to_parquet(tmp_path / "rows.parquet")
    assert list(documents(str(tmp_path / "1.txt"))) == texts[1:]
    for name in ("rows.jsonl", "rows.parquet"):
        assert list(documents(str(tmp_path / name), tokenizer)) == texts
    assert list(documents(str(tmp_path), tokenizer)) == texts * 3  # a folder: all of them, by name


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_messages_are_rendered_with_the_chat_template(
    suffix: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / f"chat.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(json.dumps({"messages": talk}) for talk in MESSAGES))
    else:
        pd.DataFrame({"messages": MESSAGES}).to_parquet(file)
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = TEMPLATE
    assert list(documents(str(file), talking)) == RENDERED
    with pytest.raises(PuzzleError, match=r"holds messages, but .* no chat template; give `text`"):
        list(documents(str(file), tokenizer))
    talking.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(
        PuzzleError, match=r"[01]: the parent's chat template refuses it: no system"
    ):
        list(documents(str(file), talking))


class Rows(list[dict[str, str]]):
    """As far as a streamed dataset is used; rows come in their order, and how many came is seen."""

    came = 0

    def shuffle(self, *, seed: int, buffer_size: int) -> Rows:
        return self

    def __iter__(self) -> Iterator[dict[str, str]]:
        for row in super().__iter__():
            type(self).came += 1
            yield row


def test_of_a_hub_dataset_as_much_is_read_as_is_needed(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    rows = Rows([{"text": f"text {number} " * 40} for number in range(10_000)])
    fake = types.SimpleNamespace(load_dataset=lambda *_, **__: rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    asked = {"calibration": 64, "scoring": 64}
    found = splits("owner/texts", tokenizer, length=32, tokens=asked, seed=0)
    assert {name: len(ids) for name, ids in found.items()} == {"calibration": 2, "scoring": 2}
    assert 0 < Rows.came < 1_000


def test_hub_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def load_dataset(name: str, **options: Any) -> Iterator[dict[str, str]]:
        if name != "owner/texts":
            raise FileNotFoundError(f"no dataset {name}\nand a long story")
        assert options == {"split": "train", "streaming": True}
        return Rows([{"text": "from the hub"}])

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)  # type: ignore[arg-type]
    assert list(documents("owner/texts", tokenizer)) == ["from the hub"]
    with pytest.raises(PuzzleError, match=r"no dataset the hub gives: no dataset owner/other$"):
        list(documents("owner/other", tokenizer))
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(PuzzleError, match=r"pip install 'puzzle-nas\[data\]'"):
        list(documents("owner/texts", tokenizer))


def test_long_texts_are_cut_at_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {n} " + "x" * (n * 37 % 900) + "\n\n" for n in range(60)]
    text = "".join(paragraphs) + "y" * (3 * LONGEST)
    (tmp_path / "long.txt").write_text(text)
    pieces = list(documents(str(tmp_path / "long.txt")))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= LONGEST
    assert all(piece.startswith(("paragraph", "y")) for piece in pieces)


def test_too_little_text_says_how_much_there_is(folder: Path, tokenizer: Any) -> None:
    sentence = (
        r"the scoring split has (\d+) tokens of text in (\d+) documents and needs 1000000; give "
    )
    with pytest.raises(PuzzleError, match=sentence) as caught:
        cut(folder, tokenizer, scoring=1_000_000)
    less = re.search(r"--set tokens\.scoring=(\d+)$", str(caught.value))
    assert less
    assert cut(folder, tokenizer, scoring=int(less[1]))["scoring"].numel() == int(less[1])


def test_less_text_than_one_sequence_asks_for_no_impossible_setting(
    tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(PuzzleError, match=r"needs 64; give more text with --data$"):
        cut(tmp_path, tokenizer, calibration=64, evaluation=64, scoring=64)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.jsonl", None, r"there is no file .*missing\.jsonl; check --data"),
        ("missing.txt", None, r"there is no file .*missing\.txt; check --data"),
        ("bytes.txt", b"\xff\xfe\x00", r"bytes\.txt is not UTF-8 text; convert it"),
        ("bytes.jsonl", b'{"text": "\xff"}\n', r"bytes\.jsonl is not UTF-8 text; convert it"),
        ("torn.jsonl", b'{"text": "a"}\n{"te', r"torn\.jsonl line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', r"line 1 has neither `text` nor `messages`"),
        ("list.jsonl", b'["a"]\n', r"line 1 has neither `text` nor `messages`"),
        ("not.parquet", b"no parquet", r"not\.parquet is not a parquet file that reads"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    name: str, content: bytes | None, sentence: str, tmp_path: Path, tokenizer: Any
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PuzzleError, match=sentence):
        list(documents(str(tmp_path / name), tokenizer))


def test_a_folder_without_text_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(PuzzleError, match=r"holds no text; put \.jsonl, \.parquet, \.txt"):
        list(documents(str(tmp_path)))


def test_a_tokenizer_without_an_end_says_so(folder: Path, tokenizer: Any) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(PuzzleError, match="no end-of-text token"):
        cut(folder, endless)


def told_glosses(texts: list[str]) -> set[str]:
    """Every definition the text tells, in both forms: `word (noun): ...`, `noun, ...: word`."""
    told = set()
    for line in "\n".join(texts).splitlines():
        for mark in (
            r" \((?:noun|verb|adjective|adverb)\): ",
            r"^(?:noun|verb|adjective|adverb), ",
        ):
            if found := re.search(mark, line):
                gloss = line[found.end() :]
                told |= {gloss[: end.start()] for end in re.finditer(r"[.:]|$", gloss)}
    return told


def test_definitions_of_the_accuracy_set_stand_in_no_text(embedded: list[str]) -> None:
    told = told_glosses(embedded)
    assert "having feet that turn inward" in told  # a training gloss is found
    assert "an electric battery" in told_glosses(["noun, an electric battery: pile. an example"])
    assert len(told) > 90_000
    items = accuracy_items()
    assert len(items) > 500
    assert not [item for item in items if item.definition in told]


def test_accuracy_items_do_not_give_their_answer_away() -> None:
    items = accuracy_items()
    for item in items:
        assert len(set(item.choices)) == 4
        word = item.choices[item.answer]
        assert not re.search(rf"\b{re.escape(word)}", item.definition, re.I), item
    places = Counter(item.answer for item in items)
    assert sorted(places) == [0, 1, 2, 3]
    assert max(places.values()) < 0.3 * len(items)
    assert len({item.definition for item in items}) == len(items)
