"""Export the child of a finished run again, for an engine of choice."""

from __future__ import annotations

from pathlib import Path

from puzzle import records
from puzzle.config import load_config
from puzzle.export.checkpoint import write_checkpoint
from puzzle.export.rewrite import Child, rewrite
from puzzle.export.targets import target_of
from puzzle.parent import open_parent
from puzzle.report import model_card
from puzzle.result import open_result
from puzzle.run import CONFIG


def export(
    run: str | Path, target: str, *, budget: str | None = None, out: str | Path | None = None
) -> Path:
    """Write a run's healed child for `target`; returns the folder, or the GGUF file of llama.cpp.

    Args:
        budget: which budget's child; the one chosen last unless told.
        out: where to; `for-<target>`, or `child.gguf`, beside the run's own checkpoint unless told.

    Raises:
        PuzzleError: the child is not healed yet, or the engine cannot serve it.
    """
    target = target_of(target)
    result = open_result(run, budget)
    config, whole = load_config(result.run.folder / CONFIG), result.written
    parent = open_parent(config.model, config.dtype)
    weights = result.run.load_tensors(records.child(result.name, "healed"))
    beside = result.checkpoint.parent
    if target == "llama.cpp":
        from puzzle.export.gguf import write_gguf

        child = rewrite(Child(parent.config, whole.blocks, weights), target)
        return write_gguf(Path(out or beside / "child.gguf"), child, parent.folder)
    folder = Path(out or beside / f"for-{target}")
    return write_checkpoint(
        folder, parent, whole, weights, card=model_card(result, whole), target=target
    )
