"""What the benchmark of scores works on: a library of SmolLM2-135M and its children, made once."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from puzzle import corpus, records
from puzzle.assemble import assemble, from_weights
from puzzle.blocks.variant import NOTHING
from puzzle.budget import Budget
from puzzle.choose import choose
from puzzle.config import Config, Distill, DType, Mend, Space
from puzzle.device import multiplies_bfloat16
from puzzle.distill import distill
from puzzle.evaluate import Reading, evaluate
from puzzle.exact import exact
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.library import Library
from puzzle.measure import kl, measure
from puzzle.mend import mend
from puzzle.menu import Choice, Menu
from puzzle.parent import Parent, open_parent
from puzzle.rounds import further
from puzzle.run import Run, fingerprint
from puzzle.sample import sample as let_write
from puzzle.score import Scores, score, scores
from puzzle.settle import settle
from puzzle.space import Options, layer_blocks, pieces
from puzzle.swap import Swap
from puzzle.trace import forward, trace, trace_print
from puzzle.trial import trial
from puzzle.window import windows

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "checkpoints" / "smollm2-135m"
WEB = ROOT / "checkpoints" / "web" / "web.jsonl"
LENGTH = 768  # longer than the longest window of the space
CALIBRATION, EVALUATION = 21 * LENGTH, 22 * LENGTH  # tokens
OWN_SPARE = 4096  # tokens written beyond the share that documents of calibration have on average
OWN = "own.jsonl"  # what the parent writes
SAMPLES = 8
# what this processor multiplies in its own instructions, where children are evaluated and healed
DTYPE: DType = "bfloat16" if multiplies_bfloat16() else "float32"
LONGEST = 8  # layers in a row removed as one
SAMPLED = 150  # blocks that are scored exactly
CHUNK = 30  # blocks of the sample between two savings
DISTILL = {"batch_tokens": 4096, "learning_rate": 3e-3}
AT_ONCE = 4  # children evaluated between two savings
SPACE = Space(
    attention=("gqa3", "gqa1", "gqa3w128", "gqa3w512", "linear", "noop"),
    ffn=(
        *(f"ffn{width}" for width in (1536, 1280, 1024, 768, 512, 256, 128)),
        *("linear", "noop"),
    ),
)


@dataclass(frozen=True)
class Scale:
    """Tokens of scoring and of calibration text, length of their sequences, sets of drawn labels.

    Calibration text is the embedded corpus, or what the parent writes itself; evaluation text is
    always the same.
    """

    length: int = LENGTH
    scoring: int = 4 * LENGTH
    calibration: int = CALIBRATION
    own: bool = False  # written by the parent
    samples: int = SAMPLES
    distilled: int = 0  # tokens that every piece learns from; none leaves the refit ones
    dtype: DType = "float32"  # of what distillation multiplies
    mending: int | None = None  # parts of the calibration text that mend; all of them
    seed: int = 0  # of what the parent writes, and of the labels


def texts(parent: Parent, work: Path, scale: Scale) -> dict[str, torch.Tensor]:
    """Token ids [S, T] by split: calibration text as the scale says, the rest from the web."""
    lines = WEB.read_text(encoding="utf-8").splitlines(keepends=True)

    def web(split: str, part: int, length: int, count: int) -> torch.Tensor:
        path = work / f"web-{split}.jsonl"
        own = path.with_suffix(f".{os.getpid()}")  # ranks write it at the same time
        own.write_text("".join(lines[part::2]), encoding="utf-8")
        own.replace(path)
        return tokens_of(parent, str(path), length, count)

    taught = scale.length, scale.calibration
    return {
        "calibration": written(parent, work / OWN, *taught, scale.seed)
        if scale.own
        else tokens_of(parent, "embedded", *taught),
        "scoring": web("scoring", 0, scale.length, scale.scoring),
        "evaluation": web("evaluation", 1, LENGTH, EVALUATION),
    }


def written(parent: Parent, path: Path, length: int, count: int, seed: int) -> torch.Tensor:
    """Token ids [S, T] of text that the parent writes into this file, where it has not yet."""
    let_write(str(MODEL), path, count * 10 // 9 + OWN_SPARE, seed=seed)
    return tokens_of(parent, str(path), length, count)


def tokens_of(parent: Parent, source: str, length: int, count: int) -> torch.Tensor:
    """Token ids [S, T] of a source's calibration split, the largest part of its documents."""
    counts = {"calibration": count}
    cut = corpus.splits(source, parent.tokenizer, length=length, tokens=counts, seed=0)
    return cut["calibration"]


class Bench:
    """The library of a space, or of some blocks a layer, and a place for what each step found."""

    def __init__(self, work: Path, space: Space | Options = SPACE, scale: Scale = Scale()) -> None:
        self.run, self.parent, self.scale = Run(work), open_parent(str(MODEL)), scale
        self.space: Options = (
            layer_blocks(self.parent.blocks, space, "hf") if isinstance(space, Space) else space
        )
        self.texts = texts(self.parent, work, scale)
        draws = {"samples": scale.samples, "seed": scale.seed}
        traced = trace_print(self.parent, self.texts["scoring"], **draws)
        (window,) = windows(self.texts, self.parent, Config(), traced)
        splits = {"scoring": self.texts["scoring"], **window.parts}
        trace(self.run, self.parent, splits, **draws)
        wanted = pieces(self.space, self.parent.blocks)
        options = Distill(tokens=scale.distilled, dtype=scale.dtype, **DISTILL)
        self.inputs = distill(self.run, self.parent, wanted, options, window)
        self.library, self.parts = Library(self.run, self.parent), [*window.parts][: scale.mending]

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
    """Score all blocks of all layers, and removed runs; returns CPU seconds."""

    def upto(layer: int) -> Callable[[], None]:
        longest = LONGEST if layer == len(bench.space) - 1 else 1  # runs with the last layer
        space = bench.space[: layer + 1]
        return lambda: score(bench.run, bench.library, space, longest, bench.inputs)

    return sum(
        bench.step(f"fisher/L{layer:02}", upto(layer))["cpu_s"] for layer in range(len(bench.space))
    )


def sampled(bench: Bench) -> list[Swap]:
    """Blocks to score exactly, about the same number from every layer."""
    draw = random.Random(0)
    swaps = [
        Swap(layer, (block,))
        for layer, blocks in enumerate(bench.space)
        for block in draw.sample(blocks[1:], 6)
    ]
    random.Random(0).shuffle(swaps)  # chunks of all depths take about the same time
    return swaps[:SAMPLED]


def sample(bench: Bench) -> float:
    """Score the sample exactly; returns CPU seconds."""
    swaps = sampled(bench)

    def some(first: int) -> Callable[[], int]:
        return lambda: len(exact(bench.library, swaps[first : first + CHUNK]))

    return sum(
        bench.step(f"sample/{first:03}", some(first))["cpu_s"]
        for first in range(0, len(swaps), CHUNK)
    )


def exact_sample(bench: Bench) -> dict[Swap, dict[str, dict[str, float]]]:
    """The exact scores of the sample, timed when they are made."""
    sample(bench)
    return exact(bench.library, sampled(bench))


def menus(bench: Bench, throughput: str) -> tuple[Scores, dict[str, Menu]]:
    """The Fisher scores, and a menu for each way of scoring without running children."""
    found = scores(bench.run, bench.space)
    budget = Budget.model_validate(
        {
            "name": f"throughput-{throughput}",
            "hardware": "h100-sxm",
            "workload": {"prompt_tokens": 200, "new_tokens": 56, "batches": [64, 256, 1024]},
            "targets": {"throughput": throughput},
        }
    )
    shape = bench.parent.shape
    prices = price(shape, bench.parent.family, bench.space, budget)
    draw = random.Random(0)
    by_kind = {
        "fisher": [{b: each.fisher for b, each in layer.items()} for layer in found.blocks],
        "corrected": found.losses,
        # |d|^2 / |h|^2 over that of removing the layer: the loss that distillation trains
        "mse": [
            {block: each.change / layer[NOTHING].change for block, each in layer.items()}
            for layer in found.blocks
        ],
        "random": [
            {block: draw.random() * (block != own) for block in layer}
            for layer, own in zip(bench.space, bench.parent.blocks)
        ],
    }
    fitting = reference_of(shape, budget)
    made = {kind: Menu(losses, prices, budget, fitting) for kind, losses in by_kind.items()}
    removals = {run: each.loss for run, each in found.removals.items()}
    made["corrected"] = replace(made["corrected"], removals=removals)
    return found, made


def chosen(bench: Bench, throughput: str, kind: str) -> Choice:
    """The best child by a kind of `menus`, or by scores settled: saturated, picked."""
    found, made = menus(bench, throughput)

    def make() -> dict[str, Any]:
        menu, evaluations = made.get(kind, made["corrected"]), 0
        if kind in ("saturated", "picked"):
            menu, exact = settle(bench.library, menu, found, kind)
            evaluations = len(exact)
        return {"choice": choose(menu)[0].as_record(), "evaluations": evaluations}

    return Choice.from_record(bench.step(f"choice/{throughput}.{kind}", make)["data"]["choice"])


def evaluated(bench: Bench, children: Sequence[Choice]) -> list[torch.Tensor]:
    """KL per token of each child on every sequence of the evaluation text [S]."""
    parent = open_parent(str(MODEL), DTYPE)
    library, run = Library(bench.run, parent), bench.run
    inputs = fingerprint("evaluation", DTYPE, corpus.digest(bench.texts["evaluation"]))
    stream = parent.embed(bench.texts["evaluation"])
    run.save_tensors(records.tokens("evaluation"), {"tokens": bench.texts["evaluation"]}, inputs)
    for layer in range(parent.shape.layers + 1):
        name = records.hidden("evaluation", layer)
        if not run.fresh(name, inputs):
            run.save_tensors(name, {"h": stream}, inputs)
        stream = run.load_tensors(name)["h"]
        later = records.hidden("evaluation", layer + 1)
        if layer < parent.shape.layers and not run.fresh(later, inputs):
            stream = forward(parent, layer, stream)

    def name(choice: Choice) -> str:
        return f"bench/evaluation/{fingerprint(choice.as_record()['blocks'])}"

    missing = [each.blocks for each in children if not run.fresh(name(each), inputs)]
    by_blocks = {each.blocks: each for each in children}
    for first in range(0, len(missing), AT_ONCE):
        group = missing[first : first + AT_ONCE]
        for blocks, values in measure(library, group, {"kl": kl}, "evaluation"):
            run.save(name(by_blocks[blocks]), values["kl"].tolist(), inputs)
    return [torch.tensor(run.load(name(each))) for each in children]


def mended(bench: Bench, choice: Choice) -> dict[str, float]:
    """The KL of a child's mended weights on the evaluation text, and its standard error."""
    inputs = fingerprint("mend", bench.inputs, choice.as_record()["blocks"])

    def make() -> dict[str, Any]:
        options, name = Mend(tokens=0), "children/bench/child"
        weights = mend(bench.library, choice.blocks, bench.parts, options, name=name, inputs=inputs)
        library = Library(bench.run, open_parent(str(MODEL), DTYPE))
        teacher = assemble(library, bench.parent.blocks)
        cast = {name: tensor.to(library.parent.dtype) for name, tensor in weights.items()}
        child = from_weights(library, choice.blocks, cast)
        return asdict(
            evaluate(
                child,
                Reading(teacher, bench.texts["evaluation"]),
                tokenizer=bench.parent.tokenizer,
                items=(),
            )
        )

    return bench.step(f"mended/{fingerprint(inputs)}", make)


def rounds(bench: Bench, throughput: str, count: int) -> list[Choice]:
    """The first child and the centers of further rounds."""
    _, made = menus(bench, throughput)

    def make() -> list[dict[str, Any]]:
        first = trial(bench.library, [chosen(bench, throughput, "corrected")])[0]
        later = further(bench.library, made["corrected"], first, count)
        return [choice.as_record() for choice in (first, *later)]

    found = bench.step(f"rounds/{throughput}.{count}", make)
    return [Choice.from_record(record) for record in found["data"]]


def evaluations(bench: Bench, throughput: str, kind: str) -> int:
    """How many exact scores a settled choice took."""
    chosen(bench, throughput, kind)
    found: int = bench.run.load(f"bench/choice/{throughput}.{kind}")["data"]["evaluations"]
    return found
