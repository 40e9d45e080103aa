"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(help="A run directory that `puzzle search` made.")]
OutFolder = Annotated[Path | None, typer.Option(help="The run directory.")]
DataSource = Annotated[str | None, typer.Option(help="Text, JSONL, parquet or hub dataset.")]
BudgetSource = Annotated[str | None, typer.Option(help="A budget's name or YAML file.")]
ChildBudget = Annotated[str | None, typer.Option(help="Which budget's child; the last chosen.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, like distill.tokens=65536.")
]
