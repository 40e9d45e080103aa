"""Healing SmolLM2-135M: what each loss brings back, and how fast beside a plain Trainer.

    python benchmarks/healing.py WORK [STEP ...]

The search's children of SmolLM2 at .9, .75 and .5 of the parent's time per request, of the blocks
that `results/quality.json` records, are healed with 200,000 tokens that the parent wrote, by cosine
+ KL, by KL, and by language modeling, and examined before, on the way and after (the rate's
schedule is that of the whole). What they are examined on, web text and WordNet questions, no part
of the search or the healing has seen.

WORK is a run directory, that of `quality.py` or one of its own: the library made in it is of these
children's blocks alone. Distilling, healing and examining multiply in what the processor has
instructions for, so that two cores with those of bfloat16 do everything in three hours. The steps
are those of STEPS, all by default: a killed one goes on where it was, and figures of a step that is
not named stay as they were. `library` makes the library alone, of a rank its own layers
(`RANK=0 WORLD_SIZE=2`). `trainer` needs the package accelerate, as a Trainer does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from cpu_menu import SCALE, TAUGHT
from healing_trainer import compared
from quality_contest import Contest, Entry
from quality_methods import OURS, mended
from scoring_bench import DTYPE, Bench

from puzzle import corpus, records
from puzzle.blocks.variant import Block
from puzzle.config import Heal
from puzzle.device import multiplied_in, placed
from puzzle.evaluate import evaluate
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.hardware.profile import device_name
from puzzle.heal import Course, heal
from puzzle.run import fingerprint
from puzzle.swap import Blocks
from puzzle.training import Progress, Texts

SHARES = ("0.9x", "0.75x", "0.5x")  # of the parent's time
HEADLINE = "0.75x"  # that of the summary
LOSSES = {
    "cosine+kl": {"cosine": 1.0, "kl": 1.0, "lm": 0.0},
    "kl": {"cosine": 0.0, "kl": 1.0, "lm": 0.0},
    "lm": {"cosine": 0.0, "kl": 0.0, "lm": 1.0},
}
BATCH, MARKS, RATE = 2_000, (50_000, 100_000, 200_000), 2e-4  # tokens, and of learning
Rows = list[dict[str, Any]]


def recorded(share: str) -> tuple[Blocks, dict[str, Any]]:
    """The blocks of a search's child, and its row of `results/quality.json`."""
    rows = json.loads((record.RESULTS / "quality.json").read_text())["rows"]
    step = {"step": f"time-{share}/{OURS}", "method": OURS}
    (row,) = (row for row in rows if step.items() <= row.items())
    return tuple(map(Block.parse, row["child"].split())), row


def library(work: Path) -> Bench:
    """The library of the children's blocks alone."""
    children = [recorded(share)[0] for share in SHARES]
    space = [tuple(dict.fromkeys(blocks)) for blocks in zip(*children)]
    return Bench(work, space, SCALE)


def entry_of(contest: Contest, share: str) -> Entry:
    """The child of a search, mended once."""
    blocks, row = recorded(share)
    entry = mended(contest, blocks, row["size_share"], row["predicted_kl"])
    run, name = contest.run, f"bench/healing/{share}.child"

    def make() -> PuzzleForCausalLM:
        if not run.fresh(name, entry.inputs):
            run.save_tensors(name, dict(entry.make().named_parameters()), entry.inputs)
        return entry.rebuild(run.load_tensors(name))

    return replace(entry, make=make)


def examined(contest: Contest, name: str, inputs: str, model: PuzzleForCausalLM) -> dict[str, Any]:
    """What a model is worth, computed at most once."""
    asked = fingerprint(inputs, corpus.digest(contest.reading.tokens), len(contest.items))

    def exam() -> dict[str, Any]:
        asking = {"tokenizer": contest.parent.tokenizer, "items": contest.items}
        with multiplied_in(getattr(torch, DTYPE)):
            return asdict(evaluate(model, contest.reading, **asking))

    worth: dict[str, Any] = contest.run.remember(f"bench/healing/{name}", asked, exam)
    return worth


def parent(contest: Contest) -> tuple[dict[str, float], Rows]:
    """The parent's own perplexity and accuracy."""
    inputs = contest.parent.fingerprint
    return {}, [{"kind": "parent", **examined(contest, "parent", inputs, contest.teacher)}]


def healed(contest: Contest, share: str, loss: str) -> tuple[dict[str, float], Rows]:
    """One child healed by one loss: what it is worth before, on the way and after."""
    entry, name = entry_of(contest, share), f"{share}.{loss}"
    schooling = {"tokens": MARKS[-1], "batch_tokens": BATCH, "learning_rate": RATE}
    options = Heal(**schooling, **LOSSES[loss], dtype=DTYPE)
    tokens = contest.lesson
    inputs = fingerprint(entry.inputs, options.model_dump(), corpus.digest(tokens))
    child = entry.make()
    worth = {0: examined(contest, f"{share}.before", entry.inputs, child)}

    def watch(progress: Progress) -> None:
        if progress.tokens in MARKS:
            weights = {n: p.detach().clone() for n, p in progress.student.named_parameters()}
            examined(contest, f"{name}.{progress.tokens}", inputs, entry.rebuild(weights))

    course = Course(contest.run, records.child(f"healing.{name}", "healed"), inputs)
    heal(course, child, contest.teacher, Texts(tokens), options, watch=watch)
    for mark in MARKS:
        worth[mark] = contest.run.load(f"bench/healing/{name}.{mark}")
    same = {"kind": "model", "share": share, "loss": loss}
    rows = [{**same, "healed_tokens": mark, **each} for mark, each in worth.items()]
    about = {
        "predicted_kl": entry.predicted_kl,
        "predicted_share": entry.size_share,
        "taught": TAUGHT,
        "trained_on": device_name(),
        "dtype": DTYPE,
    }
    rows.append({**same, "kind": "child", **about, "blocks": entry.description})
    return _summary(share, loss, worth), rows


def _summary(share: str, loss: str, worth: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The headline's figures, where this is one of them."""
    if share != HEADLINE:
        return {}
    name = {"cosine+kl": "kl", "kl": "kl_only", "lm": "lm_only"}[loss]
    return {"kl_before": worth[0]["kl"], f"{name}_after_200k": worth[MARKS[-1]]["kl"]}


def trainer(contest: Contest) -> tuple[dict[str, float], Rows]:
    """Tokens per second of healing over those of a plain Trainer, step by step in turn."""
    options = Heal(tokens=MARKS[-1], batch_tokens=BATCH, learning_rate=RATE, dtype=DTYPE)
    return compared(entry_of(contest, HEADLINE).make(), contest.teacher, contest.lesson, options)


STEPS: dict[str, record.Step[Contest]] = {
    "parent": parent,
    "trainer": trainer,
    **{
        f"{share}/{loss}": partial(healed, share=share, loss=loss)
        for share in (HEADLINE, *(each for each in SHARES if each != HEADLINE))
        for loss in LOSSES
    },
}


def main() -> None:
    """Do what is missing, and write what there is after every step."""
    torch.set_num_threads(1)
    work, *steps = sys.argv[1:]
    bench = placed(library)(Path(work))
    if steps != ["library"]:
        placed(record.take_steps)("healing", STEPS, Contest(bench))


if __name__ == "__main__":
    main()
