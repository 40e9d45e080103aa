"""Event files: what TensorBoard would show."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from puzzle.ranks import Ranks
from puzzle.result import Result
from puzzle.tracker import tensorboard
from puzzle.training import Progress


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every event: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            place += 12 + length + 4
    return found


def test_every_loss_of_every_step_is_written(tmp_path: Path) -> None:
    with tensorboard(tmp_path) as watch:
        for step in (3, 4):
            watch(Progress(step, 100 * step, {"kl": 0.5 / step, "learning_rate": 0.25}, None))
    assert scalars(tmp_path) == [
        (3, "kl", pytest.approx(0.5 / 3)),
        (3, "learning_rate", 0.25),
        (4, "kl", pytest.approx(0.5 / 4)),
        (4, "learning_rate", 0.25),
    ]


def test_a_search_leaves_them_beside_its_child(result: Result) -> None:
    steps = result.healing
    written = scalars(result.run.folder / "children" / "h100-1gpu" / "tensorboard")
    kls = [value for _, name, value in written if name == "kl"]
    assert kls == pytest.approx(list(steps["kl"]))


def test_only_the_leading_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzle.tracker.here", lambda: Ranks(1, 2))
    with tensorboard(tmp_path) as watch:
        watch(Progress(1, 10, {"kl": 1.0}, None))
    assert not list(tmp_path.iterdir())
