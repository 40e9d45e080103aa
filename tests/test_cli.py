"""The command line: what it prints, and one sentence and an exit code for every bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny import SETTINGS

from puzzle.cli import main
from puzzle.result import Result
from puzzle.solver import Problem


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `puzzle ...`; returns exit code, standard output and standard error."""

    def puzzle(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puzzle", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return puzzle


def test_search_ends_with_the_table_the_architecture_and_the_paths(run, result: Result) -> None:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    model = result.architecture.parent
    code, out, _ = run("search", "--model", model, "--out", result.run.folder, *settings)
    assert code == 0
    for row in ("parameters", "throughput", "KL to the parent", "perplexity", "accuracy"):
        assert row in out
    for line in str(result.architecture).splitlines():
        assert line in out
    assert f"checkpoint  {result.checkpoint}" in out
    assert f"report      {result.report}" in out
    assert "throughput binds" in out


def test_show_and_status_read_the_run(run, result: Result) -> None:
    code, out, _ = run("show", result.run.folder, "--budget", "h100-1gpu")
    assert code == 0
    assert str(result.architecture) in out
    code, out, _ = run("status", result.run.folder)
    assert code == 0
    assert "3 of 3" in out  # scores of three layers
    assert "library" in out


def test_evaluate_prints_the_table_the_texts_and_the_numbers_found(run, result: Result) -> None:
    code, out, _ = run(
        *("evaluate", result.run.folder, "--budget", "h100-1gpu", "--lengths", "64,1024")
    )
    assert code == 0
    for word in ("top-5 agreement", "kept, healed", " +- ", "beginning: '"):
        assert word in out
    assert "number in 64 tokens at 50%" in out
    assert "No number is hidden in 1024 tokens: the parent has 256 positions." in out


def test_export_writes_for_an_engine_and_check_looks_at_it(run, result: Result, tmp_path) -> None:
    words = ("export", result.run.folder, "--budget", result.name, "--for")
    code, out, _ = run(*words, "vllm", "--out", tmp_path / "child")
    assert (code, out.strip()) == (0, str(tmp_path / "child"))
    code, out, _ = run("check", tmp_path / "child")
    assert code == 0
    assert any(line.split() == ["vLLM", "yes"] for line in out.splitlines())
    assert "yes, as the GGUF file of puzzle export --for llama.cpp" in out
    code, out, _ = run(*words, "llama.cpp")
    assert code == 0
    assert Path(out.strip()) == result.checkpoint.with_name("child.gguf")
    code, _, err = run(*words, "vlm")
    assert (code, err) == (2, "puzzle: there is no export for 'vlm'; did you mean 'vllm'?\n")


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("vllm", "mine exists and is no checkpoint that Puzzle wrote; choose another folder"),
        ("hf", "mine exists and is no checkpoint that Puzzle wrote; choose another folder"),
        ("llama.cpp", ". is a folder; name the file, like child.gguf"),
    ],
)
def test_export_takes_no_folder_that_holds_anything_else(
    run, result: Result, tmp_path, monkeypatch: pytest.MonkeyPatch, engine, sentence
) -> None:
    (here := tmp_path / "mine").mkdir()
    (here / "notes.txt").write_text("all my work")
    monkeypatch.chdir(here)
    folder = result.run.folder.resolve()
    code, _, err = run("export", folder, "--budget", result.name, "--for", engine, "--out", ".")
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_budgets_and_doctor_say_what_there_is(run) -> None:
    code, out, _ = run("budgets")
    assert code == 0
    assert "h100-1gpu" in out
    assert "cpu-laptop" in out
    code, out, _ = run("doctor")
    assert code == 0
    assert "torch" in out
    assert "GPU" in out


def test_a_problem_of_your_own_is_solved_or_refused(run, tmp_path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(Problem([[0.0, 1.0]] * 2, {"bytes": [[8, 1]] * 2}, {"bytes": 10}).to_json())
    code, out, _ = run("solve", "--problem", path)
    assert code == 0
    assert "optimal" in out
    path.write_text(Problem([[0.0, 1.0]], {"bytes": [[8, 7]]}, {"bytes": 5}).to_json())
    code, out, _ = run("solve", "--problem", path)
    assert code == 3
    assert "infeasible" in out
    path.write_text('{"loss": [[0]], "cost": {}, "limit": {}, "rules": {"fixed": [["a", 0]]}}')
    code, _, err = run("solve", "--problem", path)
    assert code == 2
    assert err == f"puzzle: {path}: rules.fixed[0][0] is 'a', expected a valid integer\n"


def test_what_is_profiled_is_the_parent_of_a_search_unless_said_otherwise(run, tmp_path) -> None:
    """The embedded one as a search has it, sizes and all."""
    code, out, _ = run("profile", "--out", tmp_path / "t.csv", "--plan")
    assert code == 0
    assert "ffn1024" in out
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search", "--budget", "h100-1gp"], "did you mean 'h100-1gpu'?"),
        (["search", "--set", "heal.token=3"], "did you mean 'tokens'?"),
        (["search", "--model", "./nowhere"], "neither a folder here nor a model"),
        (["search", "--config", "nowhere.yaml"], "cannot be read"),
        (["search", "--data", "nowhere.jsonl", "--out", "{tmp}"], "there is no file"),
        (["solve"], "give a run directory and --budget"),
        (["show", "{tmp}"], "there is no run in"),
        (["evaluate", "embedded", "--lengths", "1k"], "'1k' is not a whole number"),
        (["evaluate", "embedded", "--tasks", "nowhere.yaml"], "no file nowhere.yaml"),
        (["evaluate", "{tmp}", "--parent", "embedded"], "has no config.json"),
        (["status", "{tmp}"], "there is no run in"),
        (["search", "--set", "heal.schedule=[{shares: 1}]"], "did you mean 'share'?"),
        (["solve", "--problem", "{latin}"], "is not UTF-8 text"),
        (["estimate", "--model", "llama-3.1-8b", "--hardware", ""], "--hardware is empty"),
        (["profile", "--model", "llama-3.1-8b", "--out", "t", "--batches", "0"], "above 0"),
        (["sample", "embedded", "--out", "{tmp}"], "is a folder; name the JSONL file"),
        (["search", "--model", "{torn}"], "config.json is not JSON"),
        (["profile", "--model", "{child}", "--out", "t"], "is a child; profile its parent"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    run, result: Result, tmp_path, words, sentence
) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    places = {"tmp": tmp_path, "latin": tmp_path / "latin.json", "child": result.checkpoint}
    places["torn"] = tmp_path / "torn"
    places["torn"].mkdir()
    (places["torn"] / "config.json").write_text('{"model_type": "llama", "hidden')
    code, _, err = run(*(word.format(**places) if word[:1] == "{" else word for word in words))
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert err.startswith("puzzle: ")


def test_an_unknown_key_in_a_file_names_its_line(run, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: embedded\nheal:\n  tokns: 5\n")
    code, _, err = run("search", "--config", path)
    assert code == 2
    assert f"{path} line 3: unknown key 'tokns' in heal; did you mean 'tokens'?" in err


def test_an_infeasible_budget_exits_with_3(run, tmp_path) -> None:
    path = tmp_path / "hopeless.yaml"
    path.write_text(
        "hardware: h100-sxm\n"
        "workload: {prompt_tokens: 100, new_tokens: 28, batches: [16]}\n"
        "targets: {throughput: 90x}\n"
    )
    code, _, err = run("search", "--budget", path, "--out", tmp_path / "run")
    assert code == 3
    assert "cheapest possible child has" in err
