"""What a comparison of models found, as tables: numbers, texts, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """One number of the table with its standard error; `kept` is its share of the parent's."""

    value: float
    std_error: float
    share: bool
    kept: float | None

    def __str__(self) -> str:
        scale, digits, unit = (100, 1, "%") if self.share else (1, 3, "")
        text = f"{scale * self.value:.{digits}f}{unit}"
        if math.isnan(self.std_error) or not self.std_error:
            return text
        return f"{text} +- {scale * self.std_error:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """What models are worth, the parent first; `cells[row][model]`.

    `continuations` has a row a beginning and a column a model, `needles` a row a length and depth;
    `notes` says in sentences what was left out.
    """

    cells: dict[str, dict[str, Cell]]
    continuations: pd.DataFrame
    needles: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def values(self) -> pd.DataFrame:
        """The numbers alone."""
        return self._frame(lambda cell: cell.value)

    @property
    def std_errors(self) -> pd.DataFrame:
        """The standard error of each."""
        return self._frame(lambda cell: cell.std_error)

    @property
    def kept(self) -> pd.DataFrame:
        """The share of the parent's, of what is one to keep."""
        kept = self._frame(lambda cell: cell.kept).astype(float)
        return kept.dropna(how="all").dropna(axis="columns", how="all")

    def formatted(self) -> pd.DataFrame:
        """The table as people read it: each model, and what it keeps of the parent."""
        frame = self._frame(str)
        parent, *others = frame.columns
        columns = {parent: frame[parent]}
        for model in others:
            kept = self._frame(lambda cell: "" if cell.kept is None else f"{cell.kept:.1%}")
            columns |= {model: frame[model], model.replace("child", "kept"): kept[model]}
        return pd.DataFrame(columns)

    def tables(self) -> list[pd.DataFrame]:
        """The table, and how often hidden numbers are found again, as texts."""
        found = [self.formatted()]
        if len(self.needles):
            shares = self.needles.map(lambda share: f"{share:.0%}")
            names = [f"number in {length} tokens at {depth:.0%}" for length, depth in shares.index]
            found.append(shares.set_axis(names))
        return found

    def lines(self) -> list[str]:
        """Each beginning and how every model goes on, then what was left out."""
        said = [
            f"{model}: {text!r}"
            for row in self.continuations.to_dict("records")
            for model, text in row.items()
        ]
        return [*said, *self.notes]

    def _repr_html_(self) -> str:
        html: str = self.formatted().to_html()
        return html

    def _frame(self, of: Callable[[Cell], Any]) -> pd.DataFrame:
        rows = {
            row: {model: of(cell) for model, cell in cells.items()}
            for row, cells in self.cells.items()
        }
        return pd.DataFrame(rows).T


def cells_of(
    answers: Mapping[str, Mapping[str, Any]], field: str, share: bool, keep: bool
) -> dict[str, Cell]:
    """One row of the table from every subject's answer; the first is the parent's."""
    parent, *_ = answers
    whole = answers[parent][field]
    error = f"{field}_std_error" if field != "value" else "std_error"
    return {
        title: Cell(
            answer[field],
            answer[error],
            share,
            answer[field] / whole if keep and whole and title != parent else None,
        )
        for title, answer in answers.items()
    }
