"""The contest of `quality.py`: one parent, one library, goals, and how every child is examined."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_menu import cpu_budget, cpu_menu, scored
from scoring_bench import written
from throughput_cpu import WORK, generate

from puzzle import corpus
from puzzle.assemble import assemble
from puzzle.baselines.minitron.cut import Cut
from puzzle.budget import Budget
from puzzle.evaluate import Evaluation, Reading, answers, by_sequence
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.hardware.measure import random_model
from puzzle.menu import Menu
from puzzle.modules import Weights
from puzzle.run import fingerprint

LESSON, LENGTH = 200_000, 250  # tokens to heal with, and of one of their sequences
ASKED = slice(500, None)  # the questions that nothing is chosen by
REPEATS = 3  # generations of a child and of the parent, in turn
FLOAT32 = {"dtype": torch.float32, "device": "cpu"}


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

    def __init__(self, work: Path) -> None:
        self.bench = scored(work)
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
        """Token ids [S, T] to heal with: what the parent wrote for the library, and more."""
        source = self.run.folder / "lesson.jsonl"
        return written(self.parent, source, LENGTH, LESSON)

    def menu(self, goal: Goal) -> Menu:
        """What methods that pick blocks choose from."""
        return cpu_menu(self.bench, goal.budget)

    def examined(self, name: str, entry: Entry) -> dict[str, Any]:
        """What a child is worth and how fast it really is, computed at most once.

        Its speed is a record of its own: one that was taken on a busy machine can be taken anew.
        """
        make = cache(entry.make)

        def examine() -> dict[str, Any]:
            model = make()
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
        worth = self.run.remember(f"bench/quality/{name}", asked, examine)
        speed = self.run.remember(
            f"bench/quality/speed/{name}", asked, lambda: paired_speed(make(), self.teacher)
        )
        return {**worth, **speed}

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
        whole = Cut.whole(self.parent.shape)

        def measure() -> list[dict[str, Any]]:
            return [
                {"cut": asdict(cut), **paired_speed(self._random(cut), self.teacher)}
                for cut in probes(whole)
            ]

        asked = fingerprint("dense time", self.parent.fingerprint, WORK.model_dump())
        rows = self.run.remember("bench/quality/dense_time", asked, measure)
        cuts = [Cut(**{**row["cut"], "layers": tuple(row["cut"]["layers"])}) for row in rows]
        return DenseTime.fitted(whole, cuts, [row["time_share"] for row in rows])

    def _random(self, cut: Cut) -> PuzzleForCausalLM:
        blocks = list(cut.shape(self.parent.config).blocks)
        return random_model(cut.config(self.parent.config), blocks, FLOAT32)


def probes(whole: Cut) -> list[Cut]:
    """Cuts of every kind, from near the parent to far."""
    hidden, heads, groups = whole.hidden_size, whole.heads, whole.kv_heads
    ffn, layers = whole.intermediate_size, whole.layers
    return [
        Cut(hidden, heads, groups, ffn // 2, layers),
        Cut(hidden, heads, groups, ffn // 8, layers),
        Cut(hidden, heads, groups, ffn, layers[::2]),
        Cut(hidden, heads, groups, ffn, layers[:22]),
        Cut(432, heads, groups, ffn, layers),
        Cut(288, heads, groups, ffn // 2, layers),
        Cut(384, 6, groups, 1024, layers),
        Cut(432, heads, groups, ffn // 2, layers[:20]),
    ]


@dataclass(frozen=True)
class DenseTime:
    """Time of a dense cut: so much a parameter outside the layers, a layer, and one in a layer."""

    whole: Cut
    weights: np.ndarray[Any, Any]  # of each feature: the share of the parent's time it takes
    error: float  # the largest relative one of the cuts it was fitted to

    @classmethod
    def fitted(cls, whole: Cut, cuts: list[Cut], shares: list[float]) -> DenseTime:
        """Least squares of relative errors; the parent counts as one of the cuts."""
        rows = np.array([cls._features(whole, cut) for cut in [whole, *cuts]])
        times = np.array([1.0, *shares])
        weights, *_ = np.linalg.lstsq(rows / times[:, None], np.ones(len(times)), rcond=None)
        return cls(whole, weights, float(np.abs(rows @ weights / times - 1).max()))

    def share(self, cut: Cut) -> float:
        """Of the parent's time."""
        own, parent = (
            self._features(self.whole, each) @ self.weights for each in (cut, self.whole)
        )
        return float(own / parent)

    @staticmethod
    def _features(whole: Cut, cut: Cut) -> np.ndarray[Any, Any]:
        """Each relative to the parent's own."""

        def inside(of: Cut) -> int:
            attention = 2 * (of.heads + of.kv_heads) * 64
            return len(of.layers) * of.hidden_size * (attention + 3 * of.intermediate_size)

        return np.array(
            [
                cut.hidden_size / whole.hidden_size,
                len(cut.layers) / len(whole.layers),
                inside(cut) / inside(whole),
            ]
        )


def paired_speed(model: PuzzleForCausalLM, parent: PuzzleForCausalLM) -> dict[str, float]:
    """Time per request over the parent's, in turns; and tokens read and made per second."""
    shares, seconds = [], []
    for _ in range(REPEATS):
        own, whole = (_request_s(each) for each in (model, parent))
        shares.append(own / whole)
        seconds.append(own)
    return {
        "time_share": statistics.median(shares),
        "tokens_per_s": WORK.total_tokens / statistics.median(seconds),
    }


def _request_s(model: PuzzleForCausalLM) -> float:
    """CPU seconds of one prompt and its new tokens."""
    begin = time.process_time()
    generate(model)
    return time.process_time() - begin
