"""Scores against the exact KL: cost, agreement, and the children chosen under each.

    python benchmarks/scoring.py WORK

SmolLM2-135M with 54 blocks a layer. The library is made from the embedded corpus; all scoring and
evaluation text is web text, in disjoint parts. WORK keeps the run directory: what is there is not
computed again, so a killed benchmark goes on.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puzzle import corpus
from puzzle.config import Distill, Space
from puzzle.distill import distill
from puzzle.exact import exact
from puzzle.library import Library
from puzzle.parent import Parent, open_parent
from puzzle.run import Run, fingerprint
from puzzle.score import score
from puzzle.space import halves, layer_blocks
from puzzle.swap import Swap
from puzzle.trace import trace

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "checkpoints" / "smollm2-135m"
WEB = ROOT / "checkpoints" / "web" / "web.jsonl"
LENGTH = 768  # longer than the longest window of the space
TOKENS = {"calibration": 21 * LENGTH, "scoring": 4 * LENGTH, "evaluation": 22 * LENGTH}
SAMPLES = 8
SAMPLED = 6  # blocks a layer that are scored exactly
SPACE = Space(
    attention=("gqa3", "gqa1", "gqa3w128", "gqa3w512", "linear", "noop"),
    ffn=(
        *(f"ffn{width}" for width in (1536, 1280, 1024, 768, 512, 256, 128)),
        *("linear", "noop"),
    ),
)


def texts(parent: Parent, work: Path) -> dict[str, torch.Tensor]:
    """Token ids [S, T] by split: calibration from the embedded corpus, the rest from the web."""
    lines = WEB.read_text(encoding="utf-8").splitlines(keepends=True)
    found = {"calibration": _tokens("embedded", parent, "calibration")}
    for part, split in enumerate(("scoring", "evaluation")):
        path = work / f"web-{split}.jsonl"
        path.write_text("".join(lines[part::2]), encoding="utf-8")
        found[split] = _tokens(str(path), parent, split)
    return found


def _tokens(source: str, parent: Parent, split: str) -> torch.Tensor:
    counts = {"calibration": TOKENS[split]}  # of the source's documents, the largest part
    return corpus.splits(source, parent.tokenizer, length=LENGTH, tokens=counts, seed=0)[
        "calibration"
    ]


class Bench:
    """The library and its space, and a place for what each step found."""

    def __init__(self, work: Path) -> None:
        self.run, self.parent = Run(work), open_parent(str(MODEL))
        self.space = layer_blocks(self.parent.blocks, SPACE, "hf")
        self.texts = texts(self.parent, work)
        traced = trace(self.run, self.parent, self.texts, samples=SAMPLES, seed=0)
        wanted = halves(self.space, self.parent.blocks)
        made = distill(self.run, self.parent, wanted, Distill(tokens=0), traced)
        self.inputs, self.library = (traced, made), Library(self.run, self.parent)

    def step(self, name: str, make: Callable[[], Any]) -> dict[str, Any]:
        """What `make` returned and the CPU seconds it took, computed at most once."""

        def timed() -> dict[str, Any]:
            begin = time.process_time()
            data = make()
            return {"data": data, "cpu_s": time.process_time() - begin}

        found: dict[str, Any] = self.run.remember(
            f"bench/{name}", fingerprint(name, self.inputs), timed
        )
        return found


def fisher(bench: Bench) -> float:
    """Score all blocks of all layers; returns CPU seconds."""

    def upto(layer: int) -> Callable[[], str]:
        return lambda: score(bench.run, bench.library, bench.space[: layer + 1], bench.inputs)

    return sum(
        bench.step(f"fisher/L{layer:02}", upto(layer))["cpu_s"] for layer in range(len(bench.space))
    )


def sampled(bench: Bench) -> list[Swap]:
    """Blocks to score exactly: the same number from every layer."""
    draw = random.Random(0)
    return [
        Swap(layer, (block,))
        for layer, blocks in enumerate(bench.space)
        for block in draw.sample(blocks[1:], SAMPLED)
    ]


def sample(bench: Bench) -> float:
    """Score the sample exactly; returns CPU seconds."""
    swaps, chunk = sampled(bench), 5 * SAMPLED
    draw = random.Random(0)
    draw.shuffle(swaps)  # chunks of all depths, so that each takes about the same time

    def some(first: int) -> Callable[[], int]:
        return lambda: len(exact(bench.library, swaps[first : first + chunk]))

    return sum(
        bench.step(f"sample/{first:03}", some(first))["cpu_s"]
        for first in range(0, len(swaps), chunk)
    )


def main() -> None:
    """Do what is missing."""
    bench = Bench(Path(sys.argv[1]))
    torch.set_num_threads(1)
    print("fisher", fisher(bench), "s")
    print("sample", sample(bench), "s")


if __name__ == "__main__":
    main()
