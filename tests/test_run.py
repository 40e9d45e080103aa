"""Records are absent or complete, know what they were made from, and one process writes them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from puzzle.errors import PuzzleError
from puzzle.run import Run, fingerprint

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def files(run: Run) -> set[str]:
    """Every file of the run, hidden ones too."""
    return {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}


def test_json_records_come_back(run: Run) -> None:
    run.save("scores/L03", {"gqa2+noop": [0.25, None, "x"]}, "print")
    assert run.load("scores/L03") == {"gqa2+noop": [0.25, None, "x"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensor_records_come_back_with_their_info(run: Run, dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    run.save_tensors("library/L00.ffn=ffn96", {"a": whole, "turned": whole.T}, "p", {"loss": 0.5})
    back = run.load_tensors("library/L00.ffn=ffn96")
    assert torch.equal(back["a"], whole)
    assert torch.equal(back["turned"], whole.T)
    assert back["a"].dtype == dtype
    assert run.info("library/L00.ffn=ffn96") == {"loss": 0.5}


def test_a_missing_record_is_one_sentence(run: Run) -> None:
    with pytest.raises(PuzzleError, match=r"has no scores/L03 yet; run `puzzle search`"):
        run.load("scores/L03")


def test_a_record_is_fresh_for_its_own_inputs_only(run: Run) -> None:
    assert not run.fresh("a", "one")
    run.save("a", 1, "one")
    run.save_tensors("b", {"x": torch.zeros(2)}, "one")
    for name in ("a", "b"):
        assert run.fresh(name, "one")
        assert not run.fresh(name, "two")
    run.save("a", 2, "two")
    assert run.fresh("a", "two")
    assert run.load("a") == 2


def test_fingerprints_tell_inputs_apart_and_are_the_same_in_every_process() -> None:
    assert fingerprint("a", {"x": 1, "y": 2}) == fingerprint("a", {"y": 2, "x": 1})
    prints = [fingerprint("a"), fingerprint("b"), fingerprint(["a"]), fingerprint("a", 1)]
    assert len(set(prints)) == len(prints)
    code = "from puzzle.run import fingerprint; print(fingerprint('a', {'x': 1, 'y': [0.1]}))"
    other = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert other == fingerprint("a", {"x": 1, "y": [0.1]})


def test_names_keep_their_dots(run: Run) -> None:
    run.save_tensors("library/L00.attention=gqa2", {"x": torch.zeros(1)}, "p")
    run.save("library/L00.ffn=ffn96", 1, "p")
    run.write_text("library/notes.txt", "not a record")
    assert run.names("library/*") == ["library/L00.attention=gqa2", "library/L00.ffn=ffn96"]


def test_a_failed_write_leaves_the_old_record_and_no_debris(run: Run) -> None:
    run.save("a", "old", "one")
    with pytest.raises(TypeError):
        run.save("a", object(), "two")
    assert run.load("a") == "old"
    assert files(run) == {"a.json"}


def test_a_process_killed_while_writing_leaves_the_old_record(run: Run) -> None:
    run.save("a", "old", "one")
    code = f"""
import os, signal
from puzzle.run import Run
def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
run = Run({str(run.folder)!r})
run._write(run.folder / "a.json", write, 4)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run.load("a") == "old"
    assert run.names("*") == ["a"]
    run.save("a", "new", "one")
    assert run.load("a") == "new"


def test_a_second_process_is_told_who_holds_the_run(run: Run) -> None:
    code = f"""
import sys
from puzzle.errors import PuzzleError
from puzzle.run import Run
try:
    with Run({str(run.folder)!r}).locked():
        print("taken")
except PuzzleError as error:
    print(error)
"""

    def second() -> str:
        return subprocess.check_output([sys.executable, "-c", code], text=True)

    with run.locked():
        told = second()
    assert f"is in use by process {os.getpid()} on " in told
    assert "choose another --out" in told
    assert second() == "taken\n"


def test_the_lock_of_a_killed_process_is_free(run: Run) -> None:
    code = f"""
import os, signal
from puzzle.run import Run
with Run({str(run.folder)!r}).locked():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    with run.locked():
        pass


def test_the_lock_is_given_back_after_an_error(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.locked():
        _ = 1 / 0
    with run.locked():
        pass


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 * free, 9 * free, free))


def test_out_of_disk_is_one_sentence_and_nothing_is_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save("a", "old", "one")
    full_disk(monkeypatch, 1 << 20)
    sentence = r"out of disk: .* needs 4\.0 MiB .* and 1\.0 MiB are free; make room and run"
    with pytest.raises(PuzzleError, match=sentence):
        run.save_tensors("big", {"x": torch.zeros(1 << 20)}, "one")
    with pytest.raises(PuzzleError, match=r"out of disk"):
        run.save("a", "x" * (1 << 21), "one")
    assert run.load("a") == "old"
    assert files(run) == {"a.json"}


def full_for_json(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_tensors(*_: Any) -> None:
    # safetensors' words on a full tmpfs
    raise safetensors.SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def test_a_disk_that_fills_while_writing_is_the_same_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", full_for_json)
    monkeypatch.setattr(safetensors.torch, "save_file", full_for_tensors)
    with pytest.raises(PuzzleError, match="out of disk"):
        run.save("a", 1, "one")
    with pytest.raises(PuzzleError, match="out of disk"):
        run.save_tensors("b", {"x": torch.zeros(1)}, "one")
    assert files(run) == set()


def test_other_failures_of_safetensors_are_not_called_a_full_disk(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: unknown")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(safetensors.SafetensorError, match="unknown"):
        run.save_tensors("b", {"x": torch.zeros(1)}, "one")


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PuzzleError, match=r"cannot create .*file/run: .*; choose --out"):
        Run(tmp_path / "file" / "run")


def test_events_come_back_in_order(run: Run) -> None:
    assert run.events() == []
    run.event(stage="trace", seconds=1.5)
    run.event(stage="library")
    assert [event["stage"] for event in run.events()] == ["trace", "library"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", run.events()[0]["time"])


def test_a_torn_event_loses_itself_only(run: Run) -> None:
    run.event(stage="trace")
    log = run.folder / "events.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"stage": "torn"})[:9])
    assert [event["stage"] for event in run.events()] == ["trace"]
    run.event(stage="library")
    assert [event["stage"] for event in run.events()] == ["trace", "library"]


def test_plain_files_are_written_whole(run: Run) -> None:
    path = run.write_text("report/index.html", "<p>é</p>")
    assert path.read_text() == "<p>é</p>"
    assert files(run) == {"report/index.html"}


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.save("scores/L00", {"a": 1}, "print")
    torn = tmp_path / "run" / "scores" / ".L01.json.123.tmp"
    torn.write_text("{")
    with run.locked():
        assert not torn.exists()
    assert run.load("scores/L00") == {"a": 1}
