"""How far a run has come: per stage, records found of those wanted, and the time it took."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from puzzle import records
from puzzle.budget import load_budget
from puzzle.config import load_config
from puzzle.parent import open_parent
from puzzle.run import CONFIG, Run
from puzzle.space import layer_blocks, pieces
from puzzle.units import show


def status_table(folder: Path) -> Table:
    """One row a stage."""
    run = Run.existing(folder)
    timings = run.timings()
    table = Table("stage", "records", "time", "peak memory", box=None)
    for stage, (found, wanted) in progress(run).items():
        seconds, peak_bytes = timings.get(stage, (0.0, 0))
        took = [show(seconds, "s"), show(peak_bytes, "B")] if stage in timings else []
        table.add_row(stage, f"{found} of {wanted}", *took)
    return table


def progress(run: Run) -> dict[str, tuple[int, int]]:
    """Stage -> records found, records wanted, for the budget of the last search."""
    config = load_config(run.folder / CONFIG)
    parent = open_parent(config.model, config.dtype)
    space = layer_blocks(parent.blocks, config.space, config.target)
    layers = parent.shape.layers
    wanted = pieces(space, parent.blocks, coupled=config.distill.coupled)
    budget = load_budget(config.budget).name
    models = ("parent", "uniform", "child", "healed")
    return {
        "trace": (len(run.names("trace/parent/scoring/*")), 2 * layers + 2),
        "library": (len(run.names("library/*")), sum(map(len, wanted))),
        "scores": (len(run.names("scores/*")), layers + 1),
        "choose": (len(run.names(f"{records.solution(budget)}.json")), 1),
        "mend": (len(run.names(f"{records.child(budget, 'child')}.L*")), layers),
        "heal": (len(run.names(f"{records.child(budget, 'healed')}.*")), 1),
        "evaluate": (len(run.names(f"{records.evaluation(budget, '*')}.json")), len(models)),
        "export": (len(run.names(f"{records.exported(budget)}.json")), 1),
    }
