"""Tasks of the Language Model Evaluation Harness (lm-eval), by name or as YAML files of your own.

lm-eval is an extra: `pip install 'puzzle-nas[eval]'`. Tasks of its own fetch their data from the
hub; a YAML file whose `dataset_path` is `json` reads files that lie here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from puzzle.errors import PuzzleError

BATCH = 8  # requests at a time
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Mark:
    """One metric of one task; the standard error is NaN where lm-eval gives none."""

    task: str
    metric: str
    value: float
    std_error: float
    higher_is_better: bool


def marks(model: PreTrainedModel, tokenizer: Any, task: str) -> list[Mark]:
    """What a model does on a task: every metric of it, and of its parts where it is a group.

    Raises:
        PuzzleError: lm-eval is not installed, or the task or its data cannot be had.
    """
    check([task])
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(
        pretrained=model, tokenizer=tokenizer, device=str(model.device), batch_size=BATCH
    )
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=[task], task_manager=TaskManager(), log_samples=False
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PuzzleError(f"task {task} does not run: {reason}") from None
    return [
        mark
        for name, row in found["results"].items()
        for mark in _marks(name, row, found["higher_is_better"].get(name, {}))
    ]


def check(tasks: Sequence[str]) -> None:
    """PuzzleError, before anything is computed, for what is not here."""
    for task in tasks:
        if task.endswith(YAML) and not Path(task).exists():
            raise PuzzleError(f"there is no file {task}; check --tasks")
    if tasks and not find_spec("lm_eval"):
        raise PuzzleError(
            "tasks need lm-eval, which is not installed; run pip install 'puzzle-nas[eval]'"
        )


def contents(task: str) -> list[str]:
    """What a task is made of, as far as it lies here: its YAML file and the files that it names."""
    found: dict[Path, str] = {}
    if Path(task).is_file():
        _gather(Path(task), found)
    return [*found.values()] or [task]


def _gather(path: Path, found: dict[Path, str]) -> None:
    """A file's hash, and of YAML those of the files that it names: from here, or from beside it.

    `!function metrics.exact` is in `metrics.py`.
    """
    data = path.read_bytes()
    found[path] = hashlib.sha256(data).hexdigest()
    if path.suffix in YAML:
        for word in re.findall(r"[^\s'\"\[\]{},]+", data.decode()):
            module = word.rpartition(".")[0].replace(".", "/") + ".py"
            for named in (Path(word), path.parent / word, path.parent / module):
                if named not in found and named.is_file():
                    _gather(named, found)


def _marks(task: str, row: dict[str, Any], better: dict[str, bool]) -> list[Mark]:
    """The metrics of one row of lm-eval's results, which names them `metric,filter`."""
    found = []
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{kind}")
        shown = metric if kind == "none" else f"{metric} ({kind})"
        std_error = float(error) if isinstance(error, int | float) else math.nan
        found.append(Mark(task, shown, float(value), std_error, better.get(metric, True)))
    return found
