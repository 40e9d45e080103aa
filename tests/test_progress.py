"""Progress where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from puzzle import progress


def test_a_slow_first_item_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing done there is no pace to tell the rest by; after that there is."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", 0.0)

    def items() -> Iterator[int]:
        yield from range(3)

    assert list(progress.track(items(), "slow", total=3)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("slow: 1/3")
    assert lines[-1].startswith("slow: done")


def test_what_takes_no_time_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is run again passes over its records without a line for each."""
    assert list(progress.track(range(3), "kept")) == [0, 1, 2]
    assert not capsys.readouterr().err
