"""One rank of a healing under torchrun: `healing_rank.py RUN MODEL OPTIONS [DIES_AT]`.

Writes what it saw into RUN/seen<rank>.json: the classes of parameters and the healed bits.
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


def main() -> None:
    """Heal a damaged copy of a model from the model itself."""
    folder, model, options, *dies_at = sys.argv[1:]
    torch.set_num_threads(1)
    checkpoints.EVERY_S = EVERY_S
    parent = open_parent(model)
    run = Run(folder)
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
        if dies_at and progress.step == int(dies_at[0]):
            sys.exit(3)

    course = Course(run, "children/b/healed", "inputs")
    texts = Texts(tokens[:12], tokens[12:])
    healed = heal(course, child, teacher, texts, Heal.model_validate_json(options), watch=watch)
    digest = hashlib.sha256()
    for name in sorted(healed):
        digest.update(healed[name].numpy().tobytes())
    (Path(folder) / f"seen{here().rank}.json").write_text(
        json.dumps({**seen, "digest": digest.hexdigest()})
    )
    here().barrier()


if __name__ == "__main__":
    main()
