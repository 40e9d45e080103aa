"""`puzzle evaluate`: each part by another way of computing it, and all of it end to end."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from puzzle import evaluate as puzzle_evaluate
from puzzle import harness, records
from puzzle.assemble import assemble
from puzzle.compare import Comparison
from puzzle.comparison import Cell
from puzzle.corpus import accuracy_items
from puzzle.errors import PuzzleError
from puzzle.evaluate import Reading, evaluate
from puzzle.generation import continuations
from puzzle.library import Library
from puzzle.needle import DEPTHS, NUMBERS, hidden_number, needles
from puzzle.parent import open_parent
from puzzle.result import Result, open_result
from puzzle.run import Run
from puzzle.subjects import of_checkpoints

TASK = """
task: definitions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/definitions.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [
    {"question": "The color of the sky is", "choices": [" blue", " zqx"], "answer": 0},
    {"question": "He sat down on the", "choices": [" xylo", " chair"], "answer": 1},
    {"question": "She went to the", "choices": [" house", " zzz"], "answer": 1},
]


@pytest.fixture(scope="module")
def compared(result: Result) -> Comparison:
    """The child of the finished search against its parent."""
    return puzzle_evaluate(result, lengths=[64, 1024])


@pytest.fixture(scope="module")
def other(tiny_parent: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny parent with other weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_parent)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("other") / "other"
    model.save_pretrained(folder)
    return str(folder)


def test_a_run_is_compared_as_its_search_compared_it(compared: Comparison, result: Result) -> None:
    for row in ("KL to the parent", "perplexity", "token agreement"):
        for title in ("parent", "child", "child, healed"):
            expected = result.table.to_dict()[title][row]
            assert compared.values.to_dict()[title][row] == pytest.approx(expected, rel=1e-5)
    assert list(compared.values.columns) == ["parent", "child", "child, healed"]
    shares = compared.cells["accuracy"]
    kept = shares["child"].value / shares["parent"].value
    assert shares["child"].kept == pytest.approx(kept)
    assert list(compared.kept.columns) == ["child", "child, healed"]
    assert compared.cells["KL to the parent"]["child"].kept is None


def test_what_was_found_is_kept(
    compared: Comparison, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puzzle.subjects.assemble", None)
    monkeypatch.setattr("puzzle.subjects.nearest", None)
    again = puzzle_evaluate(open_result(result.run.folder, result.name), lengths=[64, 1024])
    assert again.formatted().equals(compared.formatted())
    assert again.continuations.equals(compared.continuations)
    assert again.needles.equals(compared.needles)


def test_a_child_that_is_only_chosen_is_not_compared(result: Result, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for name in ("config.yaml", "solutions/h100-1gpu.json", "solutions/h100-1gpu.txt"):
        run.write_text(name, (result.run.folder / name).read_text())
    with pytest.raises(PuzzleError, match="chosen a child for budget h100-1gpu but not healed it"):
        puzzle_evaluate(run.folder)


def test_a_child_that_is_being_mended_anew_is_not_compared(result: Result, tmp_path: Path) -> None:
    run = Run(shutil.copytree(result.run.folder, tmp_path / "run"))
    layer = records.layer_of(records.child(result.name, "child"), 0)
    run.save_tensors(layer, run.load_tensors(layer), "of another mending")
    with pytest.raises(PuzzleError, match="is being mended anew; run `puzzle search`"):
        puzzle_evaluate(open_result(run.folder, result.name))


def test_a_text_with_less_is_read_as_far_as_it_goes(tiny_parent: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("\n\n".join(f"paragraph {n} " * 400 for n in range(60)))
    asked = of_checkpoints(
        tiny_parent, tiny_parent, str(tmp_path / "short.txt"), tmp_path / "compared"
    )
    assert 0 < len(asked.tokens) < 16_384 // 256
    (tmp_path / "short.txt").write_text("a word")
    with pytest.raises(PuzzleError, match=r"give more text with --data$"):
        _ = replace(asked).tokens


def test_lengths_beyond_the_parents_positions_are_left_out_with_a_sentence(
    compared: Comparison,
) -> None:
    assert [length for length, _ in compared.needles.index] == [64] * len(DEPTHS)
    assert compared.notes == ("No number is hidden in 1024 tokens: the parent has 256 positions.",)


def test_two_checkpoints_are_compared_token_by_token(
    tiny_parent: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = accuracy_items()[:50]
    monkeypatch.setattr("puzzle.corpus.accuracy_items", lambda: questions)
    found = puzzle_evaluate(other, parent=tiny_parent, lengths=[], out=tmp_path / "run")
    same = puzzle_evaluate(tiny_parent, parent=tiny_parent, lengths=[], out=tmp_path / "same")
    assert found.cells["KL to the parent"]["child"].value > 0.001
    assert same.cells["KL to the parent"]["child"].value == 0
    assert same.cells["accuracy"]["child"].kept == 1
    assert (same.continuations["child"] == same.continuations["parent"]).all()


def test_a_checkpoint_needs_a_parent_of_its_vocabulary(
    tiny_parent: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PuzzleError, match="say what it is compared with: --parent"):
        puzzle_evaluate(tiny_parent)
    with pytest.raises(PuzzleError, match=r"vocabulary of 97 tokens, .* one of 4096"):
        puzzle_evaluate(str(checkpoints["llama"]), parent=tiny_parent, out=tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PuzzleError, match=r"empty has no config\.json"):
        puzzle_evaluate(str(tmp_path / "empty"), parent=tiny_parent, out=tmp_path / "run")


def test_a_model_whose_logits_are_more_than_its_head_is_not_compared(
    tiny_parent: str, tmp_path: Path
) -> None:
    """As a child, and its family is none of a parent's."""
    config = transformers.GraniteConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path / "scaled")
    scaled = str(tmp_path / "scaled")
    with pytest.raises(PuzzleError, match=r"scaled makes its logits of more than a norm and a hea"):
        puzzle_evaluate(scaled, parent=tiny_parent, out=tmp_path / "run")
    with pytest.raises(PuzzleError, match=r"scaled is of the family 'granite'; supported families"):
        puzzle_evaluate(tiny_parent, parent=scaled, out=tmp_path / "run")


def test_logits_in_parts_are_the_logits_whole(
    tiny_parent: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = (
        transformers.AutoModelForCausalLM.from_pretrained(name) for name in (tiny_parent, other)
    )
    tokens = torch.randint(0, 4096, (3, 50), generator=torch.Generator().manual_seed(0))

    def found() -> Any:
        return evaluate(child, Reading(parent, tokens), tokenizer=None, items=[])

    whole = found()
    module = importlib.import_module("puzzle.evaluate")  # the function has its public name
    monkeypatch.setattr(module, "LOGIT_BYTES", 4096 * 4 * 3 * 7)  # seven positions
    parts = found()
    assert parts.kl == pytest.approx(whole.kl, rel=1e-5)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    with torch.no_grad():
        p, q = (model(tokens).logits for model in (parent, child))
    best_p, best_q = (logits.topk(5).indices.tolist() for logits in (p, q))
    shared = [len(set(a) & set(b)) / 5 for rows in zip(best_p, best_q) for a, b in zip(*rows)]
    assert parts.top_agreement == pytest.approx(sum(shared) / len(shared))
    loss = torch.nn.functional.cross_entropy(
        q[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    ).mean(1)
    error = float(loss.std() / 3**0.5 * loss.mean().exp())
    assert parts.perplexity_std_error == pytest.approx(error, rel=1e-4)


def test_a_number_is_told_at_its_depth_and_asked_for_at_the_end() -> None:
    tokenizer = open_parent("embedded").tokenizer
    haystack = torch.tensor(tokenizer(" hay" * 30)["input_ids"])
    for depth, place in ((0.0, 0), (1.0, 180)):
        text, told = hidden_number(tokenizer, haystack, 200, depth, seed=3)
        assert len(text) == 200
        words = tokenizer.decode(text)
        number = tokenizer.decode(text[-told:]).strip()
        assert words.count(f"The secret number is {number}") == 2
        assert words.endswith(number)
        first = len(tokenizer(words[: words.index("\nThe secret")])["input_ids"])
        assert abs(first - place) < 25
    with pytest.raises(PuzzleError, match="has no room"):
        hidden_number(tokenizer, haystack, 10, 0.5, seed=3)


class Copier(torch.nn.Module):
    """Predicts what followed the last earlier time that the last two tokens stood together."""

    def __init__(self, vocabulary: int, reach: int) -> None:
        super().__init__()
        self.vocabulary, self.reach = vocabulary, reach

    def forward(self, tokens: torch.Tensor, logits_to_keep: int, **_: object) -> Any:
        row = tokens[0].tolist()
        logits = torch.zeros(1, logits_to_keep, self.vocabulary)
        for place in range(logits_to_keep):
            end = len(row) - logits_to_keep + place
            for start in range(max(1, end - self.reach), end):
                if row[start - 1 : start + 1] == row[end - 1 : end + 1]:
                    logits[0, place] = 0
                    logits[0, place, row[start + 1]] = 1
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def test_a_model_that_looks_back_far_enough_finds_every_number() -> None:
    tokenizer = open_parent("embedded").tokenizer
    haystack = torch.tensor(tokenizer("a b c d e f g h" * 10)["input_ids"])
    everything: Any = Copier(4096, 1000)
    near: Any = Copier(4096, 60)
    assert all(needle.accuracy == 1 for needle in needles(everything, tokenizer, haystack, [120]))
    found = {needle.depth: needle.accuracy for needle in needles(near, tokenizer, haystack, [120])}
    assert found == {0.0: 0, 0.25: 0, 0.5: 0, 0.75: 1, 1.0: 1}
    assert NUMBERS > 1


def test_a_continuation_is_the_likeliest_token_again_and_again(tmp_path: Path) -> None:
    parent = open_parent("embedded")
    model = assemble(Library(Run(tmp_path / "run"), parent), parent.blocks)
    beginnings = torch.tensor([parent.tokenizer("The capital of the country")["input_ids"]])
    text = beginnings
    with torch.no_grad():
        for _ in range(6):
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
    expected = parent.tokenizer.decode(text[0, beginnings.shape[1] :])
    assert continuations(model, parent.tokenizer, beginnings, new_tokens=6) == [expected]


def test_numbers_are_written_with_their_errors() -> None:
    assert str(Cell(33.7041, 0.412, share=False, kept=None)) == "33.704 +- 0.412"
    assert str(Cell(0.3871, 0.0154, share=True, kept=0.9)) == "38.7% +- 1.5"
    assert str(Cell(2.0, math.nan, share=False, kept=None)) == "2.000"


def test_tasks_without_the_harness_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(harness, "find_spec", lambda name: None)
        with pytest.raises(PuzzleError, match=r"pip install 'puzzle-nas\[eval\]'"):
            puzzle_evaluate("embedded", parent="embedded", tasks=["hellaswag"])


def test_a_task_is_its_file_and_the_files_it_names(tmp_path: Path) -> None:
    path, data = tmp_path / "definitions.yaml", tmp_path / "definitions.jsonl"
    path.write_text(TASK.format(folder=tmp_path))
    without = harness.contents(str(path))
    data.write_text("first")
    first = harness.contents(str(path))
    data.write_text("second")
    assert len({tuple(without), tuple(first), tuple(harness.contents(str(path)))}) == 3
    assert harness.contents("hellaswag") == ["hellaswag"]


def test_a_task_is_also_what_lies_beside_its_file(tmp_path: Path) -> None:
    """Files it includes, and modules that its functions are of, however deep."""
    path = tmp_path / "mine.yaml"
    path.write_text("include: base.yaml\ntask: mine\n")
    (tmp_path / "base.yaml").write_text("doc_to_text: !function texts.question\n")
    (tmp_path / "texts.py").write_text("first")
    seen = {tuple(harness.contents(str(path)))}
    for name in ("texts.py", "base.yaml"):
        with (tmp_path / name).open("a") as file:
            file.write("# second\n")
        seen.add(tuple(harness.contents(str(path))))
    assert len(seen) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_task_of_ones_own_is_a_row(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = "\n".join(map(json.dumps, QUESTIONS))
    (tmp_path / "definitions.jsonl").write_text(lines)
    path = tmp_path / "definitions.yaml"
    path.write_text(TASK.format(folder=tmp_path))
    parent = open_parent("embedded")
    model = assemble(Library(Run(tmp_path / "run"), parent), parent.blocks)
    (mark,) = harness.marks(model, parent.tokenizer, str(path))
    assert (mark.task, mark.metric, mark.higher_is_better) == ("definitions", "acc", True)
    assert mark.value == pytest.approx(2 / 3)  # the third answer is not one
    assert mark.std_error == pytest.approx((2 / 9 / 2) ** 0.5)
    found = puzzle_evaluate(result, lengths=[], tasks=[str(path)])
    assert set(found.cells["definitions acc"]) == {"parent", "child", "child, healed"}
    with pytest.raises(PuzzleError, match="task nonsense does not run"):
        harness.marks(model, parent.tokenizer, "nonsense")
    with pytest.raises(PuzzleError, match=r"there is no file nowhere\.yaml"):
        harness.check(["nowhere.yaml"])
