"""One rank of healings under torchrun, one after another: `healing_rank.py JOBS`.

JOBS is a JSON list of objects: the `run` directory, the `model` to heal, the `options` of healing,
and at which step it `dies`, null for never. Writes what it saw into seen<rank>.json of the run: the
classes of parameters and the healed bits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from puzzle import checkpoints
from puzzle.assemble import assemble
from puzzle.config import Heal
from puzzle.heal import Course, heal
from puzzle.library import Library
from puzzle.parent import open_parent
from puzzle.ranks import here
from puzzle.run import Run
from puzzle.training import Progress, Texts

EVERY_S = 0.0


def healed_copy(job: dict[str, Any]) -> None:
    """Heal a damaged copy of a model from the model itself."""
    parent = open_parent(job["model"])
    run, folder = Run(job["run"]), Path(job["run"])
    teacher = assemble(Library(run, parent), parent.blocks)
    child = assemble(Library(run, parent), parent.blocks)
    draw = torch.Generator().manual_seed(0)
    for parameter in child.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    tokens = torch.randint(0, 97, (15, 24), generator=torch.Generator().manual_seed(1))
    seen: dict[str, list[Any]] = {"kinds": [], "losses": []}

    def watch(progress: Progress) -> None:
        parameters = list(progress.student.parameters())
        seen["kinds"] = sorted({type(p).__name__ for p in parameters})
        seen["losses"].append(progress.losses)
        if progress.step == job["dies"]:
            sys.exit(3)

    course = Course(run, "children/b/healed", "inputs")
    texts = Texts(tokens[:12], tokens[12:])
    healed = heal(course, child, teacher, texts, Heal.model_validate(job["options"]), watch=watch)
    digest = hashlib.sha256()
    for name in sorted(healed):
        digest.update(healed[name].numpy().tobytes())
    (folder / f"seen{here().rank}.json").write_text(
        json.dumps({**seen, "digest": digest.hexdigest()})
    )
    here().barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # what a build of torch for CUDA says on a machine without a GPU
    torch._C._get_accelerator = lambda check=False: torch.device("cuda")  # type: ignore[assignment]
    checkpoints.EVERY_S, checkpoints.SHARE = EVERY_S, 0
    for job in json.loads(sys.argv[1]):
        healed_copy(job)
