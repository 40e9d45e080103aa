"""Corpora mixed by weights: proportions to the sequence, repeatable, and clear when text lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puzzle import corpus
from puzzle.errors import PuzzleError
from puzzle.mixture import mixed, parse, shares
from puzzle.parent import open_parent

LENGTH = 32
ASKED = {"calibration": 40 * LENGTH, "evaluation": 10 * LENGTH}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_parent("embedded").tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources, each of one word told from the others."""
    root = tmp_path_factory.mktemp("texts")
    for word in ("apple", "river", "seven"):
        (root / word).mkdir()
        for number in range(150):
            text = f"{number} " + f"{word} " * 60
            (root / word / f"{number}.txt").write_text(text)
    return root


def counted(rows: torch.Tensor, tokenizer: Any, *words: str) -> list[int]:
    """How many sequences are of each source."""
    texts = tokenizer.batch_decode(rows)
    assert all(sum(word in text for word in words) == 1 for text in texts)
    return [sum(word in text for text in texts) for word in words]


def test_sources_come_in_proportion_in_every_split(folder: Path, tokenizer: Any) -> None:
    mixture = {str(folder / "apple"): 7.0, str(folder / "river"): 2.0, str(folder / "seven"): 1.0}
    found = mixed(mixture, tokenizer, length=LENGTH, tokens=ASKED, seed=0)
    words = ("apple", "river", "seven")
    assert counted(found["calibration"], tokenizer, *words) == [28, 8, 4]
    assert counted(found["evaluation"], tokenizer, *words) == [7, 2, 1]


def test_sequences_are_mixed_and_the_seed_decides_how(folder: Path, tokenizer: Any) -> None:
    mixture = {str(folder / "apple"): 1.0, str(folder / "river"): 1.0}
    first, again, other = (
        mixed(mixture, tokenizer, length=LENGTH, tokens=ASKED, seed=seed)["calibration"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    apples, _ = counted(first[:20], tokenizer, "apple", "river")
    assert 3 < apples < 17


def test_one_source_is_itself(folder: Path, tokenizer: Any) -> None:
    source = str(folder / "apple")
    plain = corpus.splits(source, tokenizer, length=LENGTH, tokens=ASKED, seed=4)
    for data in (source, {source: 0.3}):
        found = mixed(data, tokenizer, length=LENGTH, tokens=ASKED, seed=4)
        assert all(torch.equal(found[split], plain[split]) for split in ASKED)


def test_a_source_without_a_whole_sequence_is_not_read(folder: Path, tokenizer: Any) -> None:
    mixture = {str(folder / "apple"): 99.0, str(folder / "river"): 1.0}
    found = mixed(mixture, tokenizer, length=LENGTH, tokens={"scoring": LENGTH}, seed=0)
    assert counted(found["scoring"], tokenizer, "apple", "river") == [1, 0]


def test_too_little_text_names_the_source_and_gives_advice_that_helps(
    folder: Path, tokenizer: Any
) -> None:
    mixture = {"embedded": 1.0, str(folder / "river"): 1.0}
    sentence = (
        r"river: the calibration split has \d+ tokens of text in \d+ documents and needs 100000; "
        "give it more text or less weight, or ask for fewer tokens$"
    )
    with pytest.raises(PuzzleError, match=sentence):
        mixed(mixture, tokenizer, length=100, tokens={"calibration": 200_000}, seed=0)


@given(
    st.integers(1, 1000),
    st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=1, max_size=6),
)
def test_shares_sum_to_the_whole_and_are_off_by_less_than_one(
    count: int, mixture: dict[str, float]
) -> None:
    found = shares(count, mixture)
    assert sum(found.values()) == count
    whole = sum(mixture.values())
    assert all(abs(found[s] - count * w / whole) < 1 + 1e-9 for s, w in mixture.items())


def test_what_is_written_is_read() -> None:
    assert parse(["a.txt=2", "b=c.txt", "d=e=0.5", "f.txt"]) == {
        "a.txt": 2,
        "b=c.txt": 1,
        "d=e": 0.5,
        "f.txt": 1,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.txt=1", "a.txt=2"], r"--data names a\.txt twice; give each source one weight"),
        (["a.txt=0"], r"--data a\.txt=0: a weight is a number above 0, like a\.txt=0\.7"),
        (["a.txt=-1"], "above 0"),
        (["a.txt=nan"], "above 0"),
        (["a.txt=inf"], "above 0"),
    ],
)
def test_bad_weights_are_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(PuzzleError, match=sentence):
        parse(words)
