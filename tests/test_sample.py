"""`puzzle sample`: text that a model writes itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers

from puzzle import corpus
from puzzle import sample as module
from puzzle.cli import main
from puzzle.errors import PuzzleError
from puzzle.result import Result
from puzzle.sample import draw, sample

START, OTHER = 3, 5


def test_tokens_are_drawn_from_the_models_own_distribution(checkpoints: dict[str, Path]) -> None:
    """Surprise equals entropy on average, and a token that ends texts comes as often as it should,
    whatever the checkpoint says of how to generate."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval()
    model.generation_config.update(
        temperature=0.2, top_k=2, repetition_penalty=3.0, eos_token_id=OTHER, num_beams=2
    )
    ids = draw(model, START, 64, 40, seed=0)
    assert ids.shape == (64, 40)
    with torch.no_grad():
        before = torch.cat([torch.full((64, 1), START), ids[:, :-1]], dim=1)
        log_p = model(before).logits.log_softmax(-1)
    surprise = -log_p.gather(-1, ids[..., None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    for gap in (surprise - entropy, (ids == OTHER).float() - log_p[..., OTHER].exp()):
        assert abs(gap.mean()) < 4 * gap.std() / gap.numel() ** 0.5
    assert (entropy < 0.98 * torch.tensor(97.0).log()).all()  # nor are all tokens as likely


def test_the_same_seed_writes_the_same(checkpoints: dict[str, Path]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval()
    state = torch.get_rng_state()
    first, again, other = (draw(model, START, 3, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 sequences of 16 tokens."""
    monkeypatch.setattr(module, "TOGETHER", 4)
    monkeypatch.setattr(module, "LENGTH", 16)


@pytest.mark.usefixtures("small")
def test_a_killed_sampling_goes_on_to_the_same_file(
    tiny_parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert 180 <= sample(tiny_parent, whole, 180) <= 192
    saved: list[int] = []

    def dying(out: Path, rows: list[object]) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(len(rows))
        keep(out, rows)  # type: ignore[arg-type]

    keep = module._save
    monkeypatch.setattr(module, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        sample(tiny_parent, killed, 180)
    assert len(killed.read_text().splitlines()) == saved[0]
    monkeypatch.setattr(module, "_save", keep)
    sample(tiny_parent, killed, 180)
    assert killed.read_bytes() == whole.read_bytes()
    before = whole.stat().st_mtime_ns
    sample(tiny_parent, whole, 100)
    assert whole.stat().st_mtime_ns == before
    *rows, last = map(json.loads, whole.read_text().splitlines())
    last["tokens"] -= 1  # as where a text ended, whose end is no token of it
    whole.write_text("".join(json.dumps(row) + "\n" for row in [*rows, last]))
    before = whole.stat().st_mtime_ns
    assert sample(tiny_parent, whole, 192) == 191
    assert whole.stat().st_mtime_ns == before


@pytest.mark.usefixtures("small")
def test_another_seed_writes_other_text(tiny_parent: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    sample(tiny_parent, first, 60)
    sample(tiny_parent, second, 60, seed=1)
    texts = [
        {json.loads(line)["text"] for line in p.read_text().splitlines()} for p in (first, second)
    ]
    assert not texts[0] & texts[1]


@pytest.mark.usefixtures("small")
def test_a_model_goes_on_with_its_text_from_another_folder(
    tiny_parent: str, tmp_path: Path
) -> None:
    first = sample(tiny_parent, tmp_path / "own.jsonl", 60)
    moved = shutil.copytree(tiny_parent, tmp_path / "moved")
    assert sample(str(moved), tmp_path / "own.jsonl", first + 60) > first


def test_documents_end_where_the_model_ends_them() -> None:
    ids = torch.tensor([[7, 8, 0, 9, 0, 0], [0, 1, 2, 3, 4, 5]])
    assert list(module._documents(ids, 0)) == [[7, 8], [9], [1, 2, 3, 4, 5]]


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_source_that_the_search_reads(
    tiny_parent: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "folder" / "own.jsonl"
    words = ["sample", tiny_parent, "--out", out, "--tokens", 400]
    monkeypatch.setattr(sys, "argv", ["puzzle", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    written = sum(row["tokens"] for row in map(json.loads, out.read_text().splitlines()))
    assert f"{written} tokens of {tiny_parent}'s own in {out}" in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_parent)
    texts = corpus.splits(str(out), tokenizer, length=16, tokens={"calibration": 128}, seed=0)
    assert texts["calibration"].shape == (8, 16)


def test_another_models_file_is_not_gone_on_with(tiny_parent: str, tmp_path: Path) -> None:
    for line in ('{"text": "by hand"}', '{"text": "", "tokens": 1, "drawn": 1, "model": "m"}', "x"):
        (tmp_path / "own.jsonl").write_text(line + "\n")
        with pytest.raises(
            PuzzleError, match=r"something else than text that .* wrote; name anoth"
        ):
            sample(tiny_parent, tmp_path / "own.jsonl", 10)
        assert (tmp_path / "own.jsonl").read_text() == line + "\n"


@pytest.mark.usefixtures("small")
def test_a_child_writes_too(result: Result, tmp_path: Path) -> None:
    assert sample(str(result.checkpoint), tmp_path / "own.jsonl", 10) >= 10
