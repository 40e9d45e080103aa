"""The contest of `quality.py`: one parent, one library, goals, and how every child is examined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from cpu_menu import cpu_budget, cpu_menu
from quality_times import DenseTime
from scoring_bench import DTYPE, OWN, Bench, written

from puzzle import corpus
from puzzle.assemble import assemble
from puzzle.baselines.minitron.cut import Cut
from puzzle.budget import Budget
from puzzle.device import multiplied_in
from puzzle.evaluate import Evaluation, Reading, answers, by_sequence
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.measure import kl_of
from puzzle.menu import Menu
from puzzle.modules import Weights
from puzzle.run import fingerprint

LENGTH = 250  # tokens of a sequence to heal with
ASKED = slice(500, None)  # the questions that nothing is chosen by


@dataclass(frozen=True)
class Goal:
    """What a child may take of what the parent takes: of its time per request, or parameters."""

    of: str  # time, parameters
    share: str  # 0.75

    def __str__(self) -> str:
        return f"{self.of}-{self.share}x"

    @property
    def value(self) -> float:
        """The share as a number."""
        return float(self.share)

    @property
    def budget(self) -> Budget:
        """The same as a budget of the search."""
        if self.of == "time":
            return cpu_budget(str(self), {"targets": {"throughput": f"{1 / self.value:.6f}x"}})
        return cpu_budget(str(self), {"limits": {"params": f"{self.share}x"}})


@dataclass(frozen=True)
class Entry:
    """A child: what it is in words, what identifies it, and how it is made."""

    description: str
    inputs: str
    make: Callable[[], PuzzleForCausalLM]
    rebuild: Callable[[Weights], PuzzleForCausalLM]  # with other tensors
    size_share: float  # of the goal's kind, as predicted when it was sized
    predicted_kl: float | None = None
    layers: tuple[int, ...] = ()  # of the parent, that a shallower child holds
    to_heal: Callable[[], Entry] | None = None  # what the method heals instead of this one


class Contest:
    """What all entrants share."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.run, self.parent, self.library = self.bench.run, self.bench.parent, self.bench.library
        self.items = corpus.accuracy_items()[ASKED]

    @cached_property
    def teacher(self) -> PuzzleForCausalLM:
        """The parent itself, in float32 as all children are."""
        return assemble(self.library, self.parent.blocks)

    @cached_property
    def reading(self) -> Reading:
        """What the parent makes of the evaluation text."""
        return Reading(self.teacher, self.bench.texts["evaluation"])

    @cached_property
    def lesson(self) -> torch.Tensor:
        """Token ids [S, T] to heal with: all that the parent wrote."""
        path, scale = self.run.folder / OWN, self.bench.scale
        return written(self.parent, path, LENGTH, scale.calibration, scale.seed)

    def menu(self, goal: Goal) -> Menu:
        """What methods that pick blocks choose from."""
        return cpu_menu(self.bench, goal.budget)

    def scoring_kl(self, entry: Entry) -> float:
        """KL(parent || child) a token on the scoring text, computed at most once."""

        def measured() -> float:
            return kl_of(self.library, entry.make())

        inputs = fingerprint(entry.inputs, corpus.digest(self.bench.texts["scoring"]))
        found: float = self.run.remember(f"bench/quality/near/{inputs}", inputs, measured)
        return found

    def examined(self, name: str, entry: Entry) -> dict[str, Any]:
        """What a child is worth, computed at most once; its time is `quality_times.py`'s."""

        def examine() -> dict[str, Any]:
            model = entry.make()
            with multiplied_in(getattr(torch, DTYPE)):
                text = by_sequence(model, self.reading)
                right = answers(model, self.parent.tokenizer, self.items)
            params = sum(tensor.numel() for tensor in model.parameters())
            return {
                **asdict(Evaluation.of(text, right, self.reading)),
                "params_share": params / sum(each.numel() for each in self.teacher.parameters()),
                "kls": [round(value, 5) for value in text["kl"].tolist()],
                "right": "".join(str(int(value)) for value in right),
            }

        asked = fingerprint(
            entry.inputs, corpus.digest(self.bench.texts["evaluation"]), len(self.items)
        )
        found: dict[str, Any] = self.run.remember(f"bench/quality/{name}", asked, examine)
        return found

    def size(self, goal: Goal, cut: Cut) -> float:
        """What a dense cut takes of what the parent takes."""
        if goal.of == "time":
            return self.dense_time.share(cut)
        shapes = cut.shape(self.parent.config), self.parent.shape
        child, whole = (shape.model_params(shape.blocks) for shape in shapes)
        return child / whole

    @cached_property
    def dense_time(self) -> DenseTime:
        """How long dense cuts take, from some that were measured with random weights."""
        return DenseTime.of(self.parent)
