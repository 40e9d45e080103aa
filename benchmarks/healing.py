"""Healing SmolLM2-135M: what each loss brings back, and how fast beside a plain Trainer.

    python benchmarks/healing.py WORK [STEP ...]

Children of .9, .75 and .5 of the parent's time per token on this CPU are healed with 200,000 tokens
by cosine + KL, by KL, and by language modeling, and examined before, on the way and after (the
rate's schedule is that of the whole). They learn from the embedded corpus; what they are examined
on, web text and WordNet questions, no part of the search or the healing has seen.

WORK is the run directory of `benchmarks/quality.py`, whose library and scores are used and are made
where they are missing; times come from the table of `benchmarks/throughput_cpu.py`, likewise. The
steps are those of STEPS, all by default: a killed one goes on where it was, and figures of a step
that is not named stay as they were. `trainer` needs the package accelerate, as a Trainer does.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from cpu_menu import cpu_budget, cpu_menu, scored, searched
from healing_trainer import compared
from scoring_bench import DTYPE, MODEL

from puzzle import corpus, records
from puzzle.assemble import assemble, from_weights
from puzzle.config import Heal
from puzzle.evaluate import Reading, evaluate
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.heal import Course, heal
from puzzle.library import Library
from puzzle.menu import Choice
from puzzle.parent import open_parent
from puzzle.run import fingerprint
from puzzle.training import Progress, Texts

BUDGETS = ("0.9x", "0.75x", "0.5x")
HEADLINE = "0.75x"  # the budget of the summary
LOSSES = {
    "cosine+kl": {"cosine": 1.0, "kl": 1.0, "lm": 0.0},
    "kl": {"cosine": 0.0, "kl": 1.0, "lm": 0.0},
    "lm": {"cosine": 0.0, "kl": 0.0, "lm": 1.0},
}
LENGTH, BATCH, MARKS = 250, 2_000, (50_000, 100_000, 200_000)  # tokens
RATE, ITEMS = 2e-4, 500
Rows = list[dict[str, Any]]


class Clinic:
    """The library in `DTYPE`, the text to learn from, and what every model is examined on."""

    def __init__(self, work: Path) -> None:
        self.bench = scored(work)
        self.run, self.parent = self.bench.run, open_parent(str(MODEL), DTYPE)
        self.library = Library(self.run, self.parent)
        self.teacher = assemble(self.library, self.parent.blocks)
        self.unseen = self.bench.texts["evaluation"]
        self.reading = Reading(self.teacher, self.unseen)
        splits = {"calibration": MARKS[-1]}
        self.tokens = corpus.splits(
            "embedded", self.parent.tokenizer, length=LENGTH, tokens=splits, seed=1
        )["calibration"]

    def chosen(self, time: str) -> Choice:
        """The child of a search."""
        budget = cpu_budget(f"cpu-{time}", {"limits": {"tpot": time}})
        return searched(self.bench, cpu_menu(self.bench, budget))

    def examined(self, name: str, inputs: str, model: PuzzleForCausalLM) -> dict[str, Any]:
        """What a model is worth, computed at most once."""
        print_ = fingerprint(self.parent.fingerprint, inputs, corpus.digest(self.unseen), ITEMS)
        exam = partial(
            evaluate,
            model,
            self.reading,
            tokenizer=self.parent.tokenizer,
            items=corpus.accuracy_items()[:ITEMS],
        )
        found: dict[str, Any] = self.run.remember(
            f"bench/healing/{name}", print_, lambda: asdict(exam())
        )
        return found


def parent(clinic: Clinic) -> tuple[dict[str, float], Rows]:
    """The parent's own perplexity and accuracy."""
    return {}, [{"kind": "parent", **clinic.examined("parent", "", clinic.teacher)}]


def healed(clinic: Clinic, time: str, loss: str) -> tuple[dict[str, float], Rows]:
    """One child healed by one loss: what it is worth before, on the way and after."""
    choice, name = clinic.chosen(time), f"{time}.{loss}"
    blocks = [str(block) for block in choice.blocks]
    child = assemble(clinic.library, choice.blocks)
    options = Heal(tokens=MARKS[-1], batch_tokens=BATCH, learning_rate=RATE, **LOSSES[loss])
    made = clinic.parent.fingerprint, blocks, options.model_dump()
    inputs = fingerprint(*made, corpus.digest(clinic.tokens))
    found = {0: clinic.examined(f"{time}.before", fingerprint(blocks), child)}

    def examine(tokens: int, student: PuzzleForCausalLM) -> None:
        weights = {n: p.detach().to(clinic.parent.dtype) for n, p in student.named_parameters()}
        model = from_weights(clinic.library, choice.blocks, weights)
        clinic.examined(f"{name}.{tokens}", inputs, model)

    def watch(progress: Progress) -> None:
        if progress.tokens in MARKS:
            examine(progress.tokens, progress.student)

    course = Course(clinic.run, records.child(f"healing.{name}", "healed"), inputs)
    heal(course, child, clinic.teacher, Texts(clinic.tokens), options, watch=watch)
    for tokens in MARKS:
        found[tokens] = clinic.run.load(f"bench/healing/{name}.{tokens}")
    same = {
        "kind": "model",
        "time": time,
        "loss": loss,
        "tpot_over_parent": choice.shares["tpot"] * float(time.removesuffix("x")),
    }
    rows = [{**same, "healed_tokens": tokens, **worth} for tokens, worth in found.items()]
    rows.append({**same, "kind": "child", "predicted_kl": choice.loss, "blocks": " ".join(blocks)})
    return _summary(time, loss, found), rows


def _summary(time: str, loss: str, found: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The headline's figures, where this is one of them."""
    if time != HEADLINE:
        return {}
    name = {"cosine+kl": "kl", "kl": "kl_only", "lm": "lm_only"}[loss]
    return {"kl_before": found[0]["kl"], f"{name}_after_200k": found[MARKS[-1]]["kl"]}


def trainer(clinic: Clinic) -> tuple[dict[str, float], Rows]:
    """Tokens per second of healing over those of a plain Trainer, step by step in turn."""
    child = assemble(clinic.library, clinic.chosen(HEADLINE).blocks)
    options = Heal(tokens=MARKS[-1], batch_tokens=BATCH, learning_rate=RATE)
    return compared(child, clinic.teacher, clinic.tokens, options)


STEPS: dict[str, record.Step[Clinic]] = {
    "parent": parent,
    "trainer": trainer,
    **{
        f"{time}/{loss}": partial(healed, time=time, loss=loss)
        for time in (HEADLINE, *(each for each in BUDGETS if each != HEADLINE))
        for loss in LOSSES
    },
}


def main() -> None:
    """Do what is missing, and write what there is after every step."""
    torch.set_num_threads(1)
    record.take_steps("healing", STEPS, Clinic(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
