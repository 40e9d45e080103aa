"""Compare: a child beside its parent in one table, then what each goes on to say and can look up.

Every part is a record, so what was interrupted goes on, and another task adds to what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from puzzle import corpus
from puzzle.comparison import Cell, Comparison, cells_of
from puzzle.device import placed
from puzzle.evaluate import TOP
from puzzle.evaluate import evaluate as evaluate_text
from puzzle.generation import continuations
from puzzle.harness import check, contents, marks
from puzzle.needle import needles
from puzzle.result import Result
from puzzle.run import CONFIG
from puzzle.subjects import Examination, of_checkpoints, of_run

LENGTHS = (1024,)  # of texts that hide a number; 20 texts each
BEGINNINGS, BEGINNING_TOKENS, NEW_TOKENS = 3, 32, 32

# row -> (field of an Evaluation, whether it is a share, whether the parent's is one to keep)
ROWS = {
    "KL to the parent": ("kl", False, False),
    "perplexity": ("perplexity", False, False),
    "token agreement": ("agreement", True, False),
    f"top-{TOP} agreement": ("top_agreement", True, False),
    "accuracy": ("accuracy", True, True),
}


@placed
def evaluate(
    target: str | Path | Result,
    *,
    parent: str | None = None,
    data: str | None = None,
    tasks: Sequence[str] = (),
    lengths: Sequence[int] = LENGTHS,
    out: str | Path | None = None,
) -> Comparison:
    """Compare a child with its parent.

    Args:
        target: a run directory or result, whose child is compared before and after healing on its
            evaluation split; or a checkpoint: a folder, `embedded` or a hub id.
        parent: the checkpoint to compare a checkpoint with, of the same vocabulary.
        data: other text than the run's (or the embedded) to compare on.
        tasks: names of lm-eval's tasks, or paths of YAML files of tasks.
        lengths: of texts that hide a number, in tokens; those beyond the parent's positions are
            left out.
        out: a checkpoint's records; `runs/<target>-evaluated` unless told otherwise.

    Raises:
        PuzzleError: bad input, in one sentence.
    """
    check(tasks)
    if isinstance(target, Result) or (Path(target) / CONFIG).exists():
        asked = of_run(target, data, parent or out)
    else:
        asked = of_checkpoints(str(target), parent, data, out)
    with asked.run.locked():
        return _compare(asked, tasks, lengths)


def _compare(asked: Examination, tasks: Sequence[str], lengths: Sequence[int]) -> Comparison:
    """Ask everything; what costs least comes first."""
    tokenizer, items = asked.parent.tokenizer, corpus.accuracy_items()
    text = corpus.digest(asked.tokens)
    texts = asked.answers(
        "text",
        [text, len(items)],
        lambda subject: asdict(
            evaluate_text(subject.model, asked.reading, tokenizer=tokenizer, items=items)
        ),
    )
    cells = {row: cells_of(texts, *about) for row, about in ROWS.items()}
    apart = max(1, len(asked.tokens) // BEGINNINGS)
    beginnings = asked.tokens[::apart][:BEGINNINGS, :BEGINNING_TOKENS]
    said = asked.answers(
        "generation",
        [text, NEW_TOKENS],
        lambda subject: continuations(subject.model, tokenizer, beginnings, new_tokens=NEW_TOKENS),
    )
    begun = {"beginning": tokenizer.batch_decode(beginnings, skip_special_tokens=True)}
    found, notes = _needles(asked, text, lengths)
    for task in tasks:
        cells |= _task(asked, task)
    return Comparison(cells, pd.DataFrame(begun | said), found, notes)


def _needles(
    asked: Examination, text: str, lengths: Sequence[int]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Accuracy by length and depth, and a sentence on the lengths left out."""
    positions, tokenizer = asked.parent.shape.max_positions, asked.parent.tokenizer
    short = [length for length in lengths if length <= positions]
    left = ", ".join(str(length) for length in lengths if length > positions)
    notes = (f"No number is hidden in {left} tokens: the parent has {positions} positions.",)
    if not short:
        return pd.DataFrame(), notes
    answers = asked.answers(
        "needles",
        [text, short],
        lambda subject: [
            asdict(needle)
            for needle in needles(subject.model, tokenizer, asked.tokens.flatten(), short)
        ],
    )
    columns = {
        title: {(row["length"], row["depth"]): row["accuracy"] for row in rows}
        for title, rows in answers.items()
    }
    return pd.DataFrame(columns), notes if left else ()


def _task(asked: Examination, task: str) -> dict[str, dict[str, Cell]]:
    """The table's rows of one lm-eval task."""
    answers = asked.answers(
        f"task.{Path(task).stem}",
        contents(task),
        lambda subject: [
            asdict(mark) for mark in marks(subject.model, asked.parent.tokenizer, task)
        ],
    )
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for title, found in answers.items():
        for mark in found:
            rows.setdefault(f"{mark['task']} {mark['metric']}", {})[title] = mark
    return {
        row: cells_of(marked, "value", False, all(m["higher_is_better"] for m in marked.values()))
        for row, marked in rows.items()
    }
