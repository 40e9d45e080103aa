"""What float8 serving costs a child: its KL with every matrix and its inputs rounded.

    python benchmarks/serving/fp8.py RUN

RUN is a finished run directory; the healed child is compared with its parent on the run's own
evaluation text, as it is and as `vllm serve --quantization fp8_per_channel` would round it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
import record

from puzzle import corpus, open_parent, open_result, records
from puzzle.assemble import assemble, from_weights
from puzzle.config import load_config
from puzzle.evaluate import Evaluation, Reading, evaluate
from puzzle.export.fp8 import fake_quantized
from puzzle.library import Library
from puzzle.run import CONFIG


def row(model: str, found: Evaluation) -> dict[str, Any]:
    """One model's figures."""
    named = ("kl", "kl_std_error", "perplexity", "agreement", "tokens")
    return {"kind": "fp8", "model": model, **{name: getattr(found, name) for name in named}}


def main() -> None:
    """Measure and record."""
    result = open_result(sys.argv[1])
    config = load_config(result.run.folder / CONFIG)
    parent = open_parent(config.model, config.dtype)
    library = Library(result.run, parent)
    texts = corpus.splits(
        config.data,
        parent.tokenizer,
        length=config.sequence_length,
        tokens=config.tokens.model_dump(),
        seed=config.seed,
    )
    healed = result.run.load_tensors(records.child(result.name, "healed"))
    child = from_weights(library, result.architecture.blocks, healed)
    whole = assemble(library, parent.blocks)
    models = {
        "child": child,
        "child in float8": fake_quantized(child),
        "parent in float8": fake_quantized(whole),
    }
    examine = partial(evaluate, tokenizer=parent.tokenizer, items=ITEMS)
    read, read_by_child = (Reading(model, texts["evaluation"]) for model in (whole, child))
    rows = [row(name, examine(model, read)) for name, model in models.items()]
    apart = examine(models["child in float8"], read_by_child)
    summary = {
        "child_kl": rows[0]["kl"],
        "child_kl_fp8": rows[1]["kl"],
        "parent_kl_fp8": rows[2]["kl"],
        "fp8_kl_to_the_child": apart.kl,
    }
    print(summary)
    record.update("serving", ("parent", "fp8"), summary, rows)


ITEMS = corpus.accuracy_items()[:8]  # accuracy is not what is asked here

if __name__ == "__main__":
    main()
