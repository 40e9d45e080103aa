"""`puzzle heal`: a run's child healed anew, and checkpoints trained further."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import SETTINGS

import puzzle
from puzzle import PuzzleError, open_result, search, solve
from puzzle.cli import main
from puzzle.config import load_config
from puzzle.pretrain import pretrain
from puzzle.result import Result
from puzzle.run import Run
from puzzle.status import progress as status_of
from puzzle.training import Progress

FEW = ["--set", "heal.tokens=1024", "--set", "heal.batch_tokens=128", "--set", "sequence_length=32"]


@pytest.fixture
def heal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `puzzle heal ...`; returns exit code, standard output and standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puzzle", "heal", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return command


def test_a_run_healed_anew_is_one_configured_so(
    heal, result: Result, tiny_parent: str, tmp_path: Path
) -> None:
    """Nothing but the healing and what follows is done again."""
    again = tmp_path / "again"
    shutil.copytree(result.run.folder, again)
    records = again.glob("children/h100-1gpu/evaluation.*.json")
    evaluated = {path.stem.removeprefix("evaluation."): path for path in records}
    healed = evaluated.pop("healed")
    before = healed.stat().st_mtime_ns
    kept = {path: path.stat().st_mtime_ns for path in again.glob("[ls][ci]*/**/*.safetensors")}
    assert kept
    kept |= {path: path.stat().st_mtime_ns for path in evaluated.values()}
    assert sorted(evaluated) == ["child", "parent", "uniform"]
    code, out, err = heal(again, "--loss", "kl+lm", "--set", "heal.tokens=768")
    assert code == 0, err
    assert "child, healed" in out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert healed.stat().st_mtime_ns > before
    changed = ["heal.cosine=0", "heal.lm=1", "heal.tokens=768"]
    whole = search(tiny_parent, out=tmp_path / "whole", settings=[*SETTINGS, *changed])
    one, other = (
        each / "children/h100-1gpu/healed.safetensors" for each in (again, whole.run.folder)
    )
    assert all(torch.equal(a, load_file(other)[name]) for name, a in load_file(one).items())
    assert list(open_result(again).healing.columns) == ["kl", "lm", "learning_rate"]


@pytest.mark.parametrize(("name", "named"), [("looser", True), ("h100-1gpu", False)])
def test_the_child_of_a_budget_solved_later_is_healed_by_its_name_or_as_the_last_chosen(
    heal, result: Result, tmp_path: Path, name: str, named: bool
) -> None:
    """From the run alone, the file being gone; also where a budget that is shipped has its name."""
    run = shutil.copytree(result.run.folder, tmp_path / "run")
    budget = tmp_path / f"{name}.yaml"
    budget.write_text(
        "hardware: h100-sxm\n"
        "workload: {prompt_tokens: 100, new_tokens: 28, batches: [16, 64]}\n"
        "targets: {throughput: 1.2x}\n"
    )
    chosen = solve(run, str(budget))
    assert chosen.architecture != result.architecture
    budget.unlink()
    with pytest.raises(PuzzleError, match=f"run `puzzle heal {run} --budget {name}` first"):
        _ = chosen.written
    code, _, err = heal(run, *(("--budget", name) if named else ()))
    assert code == 0, err
    healed = open_result(run, name)
    assert healed.solution == chosen.solution
    assert healed.written == chosen.architecture
    assert healed.checkpoint.is_dir()
    assert status_of(Run(run))["heal"] == (1, 1)


def test_a_checkpoint_learns_text_and_loads_as_before(
    heal, tiny_parent: str, tmp_path: Path
) -> None:
    texts = ["--data", "embedded=0.5", "--data", f"{tmp_path / 'own.txt'}=0.5"]
    (tmp_path / "own.txt").write_text(
        "\n\n".join(f"line {n} of a text of mine" for n in range(900))
    )
    words = [tiny_parent, "--loss", "lm", *texts, "--out", tmp_path / "out", *FEW]
    code, out, err = heal(*words)
    assert code == 0, err
    assert f"checkpoint  {tmp_path / 'out'}" in out
    losses = json.loads((tmp_path / "out" / "training.json").read_text())["data"]["losses"]
    assert len(losses) == 8
    assert losses[-1]["lm"] < losses[0]["lm"]
    assert "kl" not in losses[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = transformers.AutoModelForCausalLM.from_pretrained(tiny_parent)
    assert type(model) is type(before)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == 4096
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert heal(*words)[0] == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp


def test_an_exported_child_learns_from_a_teacher(
    heal, result: Result, tiny_parent: str, tmp_path: Path
) -> None:
    words = [result.checkpoint, "--teacher", tiny_parent, "--data", "embedded"]
    code, _, err = heal(*words, "--out", tmp_path / "out", *FEW)
    assert code == 0, err
    losses = json.loads((tmp_path / "out" / "training.json").read_text())["data"]["losses"]
    assert set(losses[0]) == {"cosine", "kl", "lm", "learning_rate"}
    puzzle.register()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "DeciLMForCausalLM"
    assert (tmp_path / "out" / "modeling_puzzle.py").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{tmp}"], "is no run directory; give --out"),
        (["{run}", "--out", "{tmp}/x"], "is a run, its healed child stays in it"),
        (["{run}", "--loss", "kll"], "'kll' is none of cosine, kl, lm"),
        (["{run}", "--data", "a=1", "--data", "a=2"], "names a twice"),
        (["{model}", "--out", "{tmp}/x", "--data", "embedded", *FEW], "need a teacher"),
        (["{tmp}", "--out", "{tmp}/x", "--data", "embedded", *FEW], "is no checkpoint that loads"),
        (["{model}", "--out", "{model}"], "would be written over; give another --out"),
        (
            ["{model}", "--out", "{tmp}/x", "--loss", "lm", "--data", "{few}"],
            "or read it several times with --set heal.data_tokens",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    heal, result: Result, tiny_parent: str, tmp_path: Path, words: list[str], sentence: str
) -> None:
    (few := tmp_path / "few.txt").write_text("a few words\n\n" * 40)
    places = {"{tmp}": str(tmp_path), "{run}": str(result.run.folder), "{model}": tiny_parent}
    places["{few}"] = str(few)
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    code, _, err = heal(*words)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", ["teaches", "was not trained here"])
def test_no_checkpoint_is_written_over(heal, tiny_parent: str, tmp_path: Path, what: str) -> None:
    other = Path(shutil.copytree(tiny_parent, tmp_path / "other"))
    before = (other / "model.safetensors").read_bytes()
    loss = ["kl", "--teacher", other] if what == "teaches" else ["lm"]
    code, _, err = heal(tiny_parent, "--loss", *loss, "--data", "embedded", "--out", other, *FEW)
    assert code == 2
    assert f"{what} and would be written over" in err
    assert (other / "model.safetensors").read_bytes() == before


def test_a_corrected_teacher_does_not_stay_and_steps_are_told(
    tiny_parent: str, tmp_path: Path
) -> None:
    few = [word for word in FEW if word != "--set"]
    settings = [*few, f"model={tiny_parent}", f"teacher={tiny_parent}", "heal.correct_tokens=256"]
    steps: list[Progress] = []
    pretrain(load_config(None, settings), tmp_path / "out", watch=steps.append)
    assert [progress.step for progress in steps] == list(range(1, 9))
    assert steps[-1].tokens == 1024
    written = {path.name for path in tmp_path.glob("out/**/*.safetensors")}
    assert written == {"model.safetensors"}
