"""Minitron, top to bottom: a parent and a target in, a smaller model of its family out.

1. Measure  the importance of heads, FFN channels and hidden channels, and what layers turn.
2. Cut      in a grid of sizes near the target, the layers by what their removal costs.
3. Try      the cuts nearest to the parent, as many of each kind: heal them lightly, keep the best.
4. Heal     it by knowledge distillation from the parent.
5. Export   it as a checkpoint, which `puzzle search --model` opens with `--teacher` the parent.

Every step is a record in the run directory: the same command again does what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puzzle.assemble import assemble
from puzzle.baselines.minitron.cut import Cut, check_dense
from puzzle.baselines.minitron.grid import Grid, kind_of, near
from puzzle.baselines.minitron.outcome import Pruned, outcome_of
from puzzle.baselines.minitron.pruned import write_pruned
from puzzle.baselines.minitron.sizes import check_costs, size_in, target_of
from puzzle.baselines.minitron.workshop import FINAL, LIGHT, Workshop
from puzzle.config import Config, load_config
from puzzle.device import placed
from puzzle.errors import PuzzleError
from puzzle.library import Library
from puzzle.mixture import healing_text, split_texts
from puzzle.modules import Weights
from puzzle.parent import open_parent
from puzzle.ranks import here
from puzzle.run import Run, fingerprint, usual_folder

CONFIG = "prune.yaml"


@placed
def prune(
    model: str | None = None,
    *,
    target: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
) -> Pruned:
    """Prune a pretrained parent as a whole, by width and depth, and heal it by distillation.

    Args:
        model: `embedded` (the default), a Hugging Face checkpoint folder, or a hub id.
        target: of the parent's parameters (`prune.of`), relative or absolute; 0.75x by default.
        data: `embedded` (the default), text, JSONL or parquet files, or a hub dataset.
        out: the run directory; `runs/<model>-pruned` unless told otherwise.
        config: a YAML file with any field of `puzzle.config.Config`.
        settings: `a.b=c` overrides of the same fields, in order.

    Raises:
        PuzzleError: bad input, in one sentence.
    """
    given = {"model": model, "data": data, "prune.target": target}
    said = [f'{key}="{value}"' for key, value in given.items() if value is not None]
    asked = load_config(Path(config) if config else None, [*said, *settings])
    run = Run(out or usual_folder(asked.model, "-pruned"))
    with run.locked():
        return _prune(run, asked)


def _prune(run: Run, config: Config) -> Pruned:
    parent = open_parent(config.model, config.dtype)
    check_dense(parent)
    config.check(parent.shape.max_positions)
    check_costs(parent, config)
    if config.teacher:
        raise PuzzleError("prune learns from the model that it prunes; leave out teacher")
    if here().world > 1:
        raise PuzzleError("prune runs as one process; start it without torchrun")
    whole, size_of = Cut.whole(parent.shape), size_in(parent, config)
    target = target_of(config, size_of(whole))
    texts = split_texts(config, parent.tokenizer)
    texts["lesson"] = healing_text(config, parent.tokenizer, texts["calibration"])
    run.write_text(CONFIG, config.to_yaml())
    with run.stage("teacher"):
        original = assemble(Library(run, parent), parent.blocks)
        shop = Workshop.open(run, parent, original, texts, config)
    with run.stage("cut"):
        grid = Grid(whole, parent.family, config.prune.axes)
        kinds = near(grid, target, size_of, shop.shallow)
        finalists = shop.first(kinds)
    with run.stage("try"):
        best = _best(shop, whole, finalists)
    with run.stage("heal"):
        healed = shop.healed(best)
    with run.stage("evaluate"):
        outcome = outcome_of(shop, original, best, healed)
    with run.stage("export"):
        _export(shop, best, healed)
    return outcome


def _best(shop: Workshop, whole: Cut, finalists: Sequence[Cut]) -> Cut:
    """The finalist nearest to the teacher once lightly healed."""

    def tried() -> list[dict[str, Any]]:
        rows = [
            {
                "cut": str(cut),
                "kind": kind_of(whole, cut),
                "kl": shop.kl(cut),
                "healed_kl": shop.healed_kl(cut),
            }
            for cut in finalists
        ]
        return sorted(rows, key=lambda row: row["healed_kl"])

    asked = fingerprint([shop.healing_print(LIGHT, cut) for cut in finalists])
    rows = shop.run.remember("finalists", asked, tried)
    best = next(cut for cut in finalists if str(cut) == rows[0]["cut"])
    for cut in finalists:
        if cut != best:
            shop.drop(cut)
    return best


def _export(shop: Workshop, cut: Cut, healed: Weights) -> None:
    run, name = shop.run, "hf/puzzle"
    inputs = shop.healing_print(FINAL, cut)
    if not run.fresh(name, inputs):
        write_pruned(run.folder / "hf", shop.parent, cut, healed)
        run.save(name, {"cut": str(cut)}, inputs)
