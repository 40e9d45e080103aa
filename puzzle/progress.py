"""Progress with time remaining: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from puzzle.ranks import here

Item = TypeVar("Item")
LINE_EVERY_S = 10.0
WORTH_A_LINE_S = 1.0  # what is done sooner, as what a record already has, is not said


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` while the leading rank shows how many are done and how long the rest takes."""
    if not here().leads:
        return iter(items)
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    return _bar(items, label, count) if sys.stderr.isatty() else _lines(items, label, count)


def _bar(items: Iterable[Item], label: str, count: int | None) -> Iterator[Item]:
    from rich.console import Console

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=count, description=label)


def _lines(items: Iterable[Item], label: str, count: int | None) -> Iterator[Item]:
    start = shown = time.monotonic()
    done = 0
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - shown > LINE_EVERY_S:
            shown = now
            left = f", {(now - start) / done * (count - done):.0f} s left" if count else ""
            _say(f"{label}: {done}/{count or '?'}, {now - start:.0f} s{left}")
        yield item
    took = time.monotonic() - start
    if took > WORTH_A_LINE_S:
        _say(f"{label}: done in {took:.0f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
