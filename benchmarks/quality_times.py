"""How long children take on this CPU: the time per request of `throughput_cpu.py`'s workload.

Wherever a child is trained, its time is taken on the CPU it was sized for, with random weights of
its sizes, which take the time of its own.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from throughput_cpu import FOLDER, WORK, request

from puzzle.baselines.minitron.cut import Cut
from puzzle.blocks.variant import Block
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.hardware.measure import random_model
from puzzle.parent import Parent
from puzzle.run import Run, fingerprint

REPEATS = 3  # requests of a child beside the parent
CUT = re.compile(r"hidden(\d+)\.heads(\d+)\.kv(\d+)\.ffn(\d+)\.layers([\d_-]+)")


@dataclass(frozen=True)
class Sized:
    """A child as far as its time goes."""

    config: Any  # of a parent of its widths
    blocks: tuple[Block, ...]

    @classmethod
    def dense(cls, cut: Cut, parent: Parent) -> Sized:
        """A whole parent cut in width and depth."""
        return cls(cut.config(parent.config), cut.shape(parent.config).blocks)

    @classmethod
    def described(cls, text: str, parent: Parent) -> Sized:
        """By the text of a row: a block a layer, or a cut behind the name of a setting."""
        if found := CUT.search(text):
            *sizes, stretches = found.groups()
            ends = (map(int, stretch.split("-")) for stretch in stretches.split("_"))
            layers = tuple(layer for first, last in ends for layer in range(first, last + 1))
            return cls.dense(Cut(*map(int, sizes), layers=layers), parent)
        return cls(parent.config, tuple(map(Block.parse, text.split())))

    def model(self) -> PuzzleForCausalLM:
        """With random weights."""
        to = {"dtype": torch.float32, "device": "cpu"}
        return random_model(self.config, list(self.blocks), to)


def speed(text: str, parent: Parent) -> dict[str, float]:
    """The speed of the child that a row describes, measured at most once."""
    asked = fingerprint("side by side", REPEATS, str(parent.shape), WORK.model_dump(), text)
    found: dict[str, float] = Run(FOLDER).remember(
        f"requests/{asked}", asked, lambda: paired_speed(Sized.described(text, parent), parent)
    )
    return found


def paired_speed(child: Sized, parent: Parent) -> dict[str, float]:
    """Time per request over the parent's, and tokens read and made per second.

    Both answer pass by pass side by side, for the clock of a processor drifts by a tenth within a
    minute, and are built anew for every request, for where memory puts them moves the ratio by a
    hundredth. The medians.
    """
    turns = [_side_by_side_s(child, Sized(parent.config, parent.blocks)) for _ in range(REPEATS)]
    share = statistics.median(own_s / parent_s for own_s, parent_s in turns)
    own_s = statistics.median(own_s for own_s, _ in turns)
    return {"time_share": share, "tokens_per_s": WORK.total_tokens / own_s}


def _side_by_side_s(*children: Sized) -> tuple[float, ...]:
    """Seconds of a request of each."""
    passes = zip(*(request(child.model()) for child in children), strict=True)
    return tuple(map(sum, zip(*passes, strict=True)))


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
    def of(cls, parent: Parent) -> DenseTime:
        """Of a parent's cuts on this CPU; some are timed where that has not been done."""
        whole = Cut.whole(parent.shape)

        def measure() -> list[dict[str, Any]]:
            rows = [(cut, paired_speed(Sized.dense(cut, parent), parent)) for cut in probes(whole)]
            return [{"cut": asdict(cut), **speed} for cut, speed in rows]

        asked = fingerprint("dense time", str(parent.shape), WORK.model_dump())
        rows = Run(FOLDER).remember("dense_time", asked, measure)
        cuts = [Cut(**{**row["cut"], "layers": tuple(row["cut"]["layers"])}) for row in rows]
        return cls.fitted(whole, cuts, [row["time_share"] for row in rows])

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
