"""What a record says, as something that compares by bits."""

from __future__ import annotations

from puzzle.run import Run


def content(run: Run, name: str) -> object:
    """All a record holds but the seconds a solver took."""
    if (run.folder / f"{name}.json").exists():
        record = run.load(name)
        return (
            [model["blocks"] for model in record["finalists"]] if "finalists" in record else record
        )
    tensors = run.load_tensors(name).items()
    return run.info(name), {key: tensor.numpy().tobytes() for key, tensor in tensors}
