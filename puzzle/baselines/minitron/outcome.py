"""What pruning came to: the parent, the pruned model and the healed one side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from puzzle import corpus
from puzzle.baselines.minitron.cut import Cut
from puzzle.baselines.minitron.pruned import model_of
from puzzle.baselines.minitron.workshop import FINAL, Workshop
from puzzle.budget import load_budget
from puzzle.evaluate import Reading, evaluate
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.hardware.price import cost_source
from puzzle.hardware.throughput import reference_of
from puzzle.modules import Weights
from puzzle.result import written
from puzzle.run import fingerprint

# row -> (its field, its unit, as in `result.ROWS`)
ROWS = {
    "parameters": ("params", "params"),
    "weights": ("weight_bytes", "B"),
    "KV cache": ("kv_bytes", "B"),
    "batch": ("batch", ""),
    "throughput": ("tokens_per_s", "tok/s"),
    "KL to the parent": ("kl", "nats"),
    "perplexity": ("perplexity", "nats"),
    "token agreement": ("agreement", "%"),
    "accuracy": ("accuracy", "%"),
}


@dataclass(frozen=True)
class Pruned:
    """The cut that was kept, its checkpoint, the table and every finalist."""

    parent: str
    cut: Cut
    checkpoint: Path
    table: pd.DataFrame  # SI units
    finalists: pd.DataFrame  # cut, kind, kl and healed_kl, nearest to the teacher first

    def formatted(self) -> pd.DataFrame:
        """The table as people read it."""
        rows = {
            row: [written(float(value), unit) for value in self.table.loc[row].to_numpy()]
            for row, (_, unit) in ROWS.items()
        }
        return pd.DataFrame(rows, index=self.table.columns).T

    def summary(self) -> str:
        """What was kept and why, and where it lies."""
        first, *_ = self.finalists.to_dict("records")
        return (
            f"{first['cut']} ({first['kind']}) is the nearest to its teacher of "
            f"{len(self.finalists)} lightly healed: KL {first['kl']:.3f} before, "
            f"{first['healed_kl']:.3f} after.\n\n"
            f"checkpoint  {self.checkpoint}\n"
            f"search on   puzzle search --model {self.checkpoint} --teacher {self.parent}"
        )


def outcome_of(shop: Workshop, original: PuzzleForCausalLM, cut: Cut, healed: Weights) -> Pruned:
    """Evaluate on the evaluation text, against the parent as it was given."""
    run, config, parent = shop.run, shop.config, shop.parent
    questions, text = corpus.accuracy_items()[: config.evaluate.items], shop.texts["evaluation"]
    sizes, budget = cut.config(parent.config), load_budget(config.budget)
    served_by = budget.model_dump(mode="json"), config.costs
    asked = fingerprint(
        shop.healing_print(FINAL, cut), corpus.digest(text), len(questions), served_by
    )
    whole, reading = Cut.whole(parent.shape), Reading(original, text)
    models: dict[str, tuple[Cut, Callable[[], PuzzleForCausalLM]]] = {
        "parent": (whole, lambda: original),
        "pruned": (cut, lambda: model_of(sizes, shop.weights(cut))),
        "pruned, healed": (cut, lambda: model_of(sizes, healed)),
    }

    def facts(cut: Cut, make: Callable[[], PuzzleForCausalLM]) -> dict[str, Any]:
        shape = cut.shape(parent.config)
        served = reference_of(shape, budget, cost_source(config.costs, shape, budget))
        worth = evaluate(make(), reading, tokenizer=parent.tokenizer, items=questions)
        return {**asdict(served), **asdict(worth)}

    columns = {}
    for title, (size, make) in models.items():
        name = f"evaluation.{title.replace(', ', '.')}"
        found = run.remember(name, asked, lambda size=size, make=make: facts(size, make))  # type: ignore[misc]
        columns[title] = {row: float(found[field]) for row, (field, _) in ROWS.items()}
    table = pd.DataFrame(columns, index=list(ROWS))
    return Pruned(parent.name, cut, run.folder / "hf", table, pd.DataFrame(run.load("finalists")))
