"""What commands print: tables, and texts below them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from puzzle.baselines.minitron.outcome import Pruned
    from puzzle.result import Result


def print_result(result: Result | Pruned) -> None:
    """Print the table of a result and what it says of it."""
    print_frames([result.formatted()], [result.summary()])


def print_frames(
    frames: Iterable[pd.DataFrame], texts: Iterable[str], *, width: int | None = None
) -> None:
    """Print frames of texts, then the texts as they are; the terminal's width is the default."""
    console = Console(width=width)
    for frame in frames:
        console.print(_framed(frame))
        console.print()
    for text in texts:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_rows(names: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print rows of texts below the names of their columns."""
    table = Table(*names, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def _framed(frame: pd.DataFrame) -> Table:
    """A frame of texts as a table: names on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in frame.columns:
        table.add_column(str(name), justify="right", no_wrap=True)
    for row, values in frame.iterrows():
        table.add_row(str(row), *map(str, values))
    return table
