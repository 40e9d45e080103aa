"""The block library of SmolLM2-135M: what its variants cost to make, and what making them brings.

    python benchmarks/library.py WORK

WORK keeps every step; what is there is not done again. The checkpoint comes from
`benchmarks/parents/smollm2.py`, the text from `benchmarks/parents/web_text.py`: one part teaches,
one judges, and all KL below is of a third.

- cost: FLOPs (counted) and CPU seconds of a training step of all halves of a layer, against one
  run per variant with a forward of the whole parent in each;
- starts: for six layers, KL of each half sliced, refit, and trained from either;
- losses: the three losses of distillation from the same start, at two of the layers;
- ranks: two ranks against one, one thread each;
- streamed: a random Llama of 1.03 billion parameters, 4.1 GB in float32, under 2.5 GiB of memory.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from puzzle import corpus, records
from puzzle.blocks.variant import Block
from puzzle.config import Config, Distill, load_config
from puzzle.distill import Pupil, begin, train
from puzzle.fisher import per_token
from puzzle.lesson import Lesson
from puzzle.parent import Parent, open_parent
from puzzle.run import Run
from puzzle.search import make_library
from puzzle.space import layer_blocks, pieces
from puzzle.trace import trace, trace_print
from puzzle.window import windows

ROOT = Path(__file__).parents[1]
MODEL, WEB = ROOT / "checkpoints/smollm2-135m", ROOT / "checkpoints/web/web.jsonl"
LENGTH = 256
TEACH, JUDGE, EXAM = 65_536, 2_048, 2_048
SAMPLES = 8
LAYERS = (2, 7, 12, 17, 22, 27)
HALVES = ("gqa1+noop", "linear+noop", "noop+ffn1152", "noop+ffn768", "noop+ffn384")
FROM_SLICE = (65_536, 262_144)  # tokens of distillation
FROM_REFIT = 65_536
SPACE = [
    "space.attention=[gqa3,gqa1,gqa3w128,gqa3w512,linear,noop]",
    "space.ffn=[ffn1536,ffn1280,ffn1024,ffn768,ffn512,ffn256,ffn128,linear,noop]",
    "target=hf",
]
STREAMED_BYTES = 2.5 * 2**30


def step(work: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, from disk if it was made before."""
    path = work / f"{name}.json"
    if not path.exists():
        begin_s = time.monotonic()
        made = make()
        path.write_text(json.dumps(made, indent=1))
        print(f"{name}: {time.monotonic() - begin_s:.0f} s", flush=True)
    return json.loads(path.read_text())


def texts(parent: Parent) -> dict[str, torch.Tensor]:
    """Disjoint parts [S, T] of the web text, documents shuffled: to teach, to judge, to examine."""
    wanted = TEACH + JUDGE + EXAM
    asked = {"calibration": wanted, "scoring": LENGTH, "evaluation": LENGTH}
    whole = corpus.splits(str(WEB), parent.tokenizer, length=LENGTH, tokens=asked, seed=0)
    parts = whole["calibration"].split([TEACH // LENGTH, JUDGE // LENGTH, EXAM // LENGTH])
    return dict(zip(("calibration", "scoring", "exam"), parts))


class Bench:
    """The parent, its texts, and the runs that hold their traces."""

    def __init__(self, work: Path) -> None:
        self.work, self.parent = work, open_parent(str(MODEL))
        self.texts = texts(self.parent)
        self.run, self.exam = Run(work / "taught"), Run(work / "exam")
        draws = {"samples": SAMPLES, "seed": 0}
        traced = trace_print(self.parent, self.texts["scoring"], **draws)
        (self.window,) = windows(self.texts, self.parent, Config(), traced)
        if not (work / "traced").exists():
            splits = {"scoring": self.texts["scoring"], **self.window.parts}
            trace(self.run, self.parent, splits, **draws)
            trace(self.exam, self.parent, {"scoring": self.texts["exam"]}, **draws)
            (work / "traced").touch()

    def lesson(self, layer: int) -> Lesson:
        """What the halves of a layer learn from."""
        return Lesson.read(self.run, self.parent, layer, self.window)

    @torch.no_grad()
    def kl(self, lesson: Lesson, layer: int, pupil: Pupil) -> float:
        """KL per token of the layer with this half, on text that neither taught nor judged."""
        enter, leave = (
            self.exam.load_tensors(records.hidden("scoring", place))["h"]
            for place in (layer, layer + 1)
        )
        gradient = self.exam.load_tensors(records.gradient(layer + 1))["g"]
        module, context = lesson.built(pupil.piece, pupil.weights), lesson.context
        output = torch.cat(
            [
                lesson.layer.feed(module.attend(part, **context))
                if module.mlp is None
                else module.feed(lesson.layer.attend(part, **context))
                for part in enter.split(8)
            ]
        )
        return float(per_token(gradient, output - leave).mean())


def cost(bench: Bench) -> dict[str, Any]:
    """Distilling every half of a layer on 32,768 tokens, and as many through the parent."""
    lesson, parent = bench.lesson(7), bench.parent
    space = layer_blocks(parent.blocks, load_config(None, SPACE).space, "hf")
    halves = pieces(space, parent.blocks)[7]
    pupils = [begin(lesson, half) for half in halves]
    options = Distill(tokens=32_768)
    steps = options.tokens // options.batch_tokens
    tokens = bench.texts["calibration"][: options.batch_tokens // LENGTH]

    @torch.no_grad()
    def forward() -> None:
        hidden = parent.embed(tokens)
        for layer in range(parent.shape.layers):
            module = parent.layer(layer)
            hidden = module(hidden, **parent.context(hidden[:1], module.window))

    def learn() -> None:
        train(lesson, pupils, options, range(steps))

    found: dict[str, Any] = {}
    for name, what, times in (("forward", forward, steps), ("learn", learn, 1)):
        begin_s = time.process_time()
        what()
        seconds = time.process_time() - begin_s
        with FlopCounterMode(display=False) as counter:
            what()
        flops = counter.get_total_flops()
        found[name] = {"flops": flops * times, "cpu_s": seconds * times}

    def ratio(unit: str) -> float:
        forward, learn = found["forward"][unit], found["learn"][unit] / len(halves)
        return (forward + learn) / (forward / len(halves) / parent.shape.layers + learn)

    ratios = {unit: ratio(unit) for unit in ("flops", "cpu_s")}
    return {**found, "halves": len(halves), "ratio": ratios}


def starts(bench: Bench, layer: int) -> list[dict[str, Any]]:
    """KL of each half of a layer: sliced, refit, and after so many tokens from either."""
    lesson, rows = bench.lesson(layer), []
    for text in HALVES:
        half = Block.parse(text)
        sliced = lesson.starts(half)["sliced"]
        refit = lesson.refit(half, sliced, "sliced")
        made = {
            ("sliced", 0): sliced,
            ("refit", 0): refit,
            ("chosen", 0): begin(lesson, half).weights,
        }
        for way, amounts in (("sliced", FROM_SLICE), ("chosen", (FROM_REFIT,))):
            for tokens in amounts:
                made[way, tokens] = taught(lesson, half, made[way, 0], tokens)
        for (way, tokens), weights in made.items():
            kl = bench.kl(lesson, layer, Pupil(half, weights, {}))
            rows.append({"layer": layer, "half": text, "way": way, "tokens": tokens, "kl": kl})
    return rows


def taught(lesson: Lesson, half: Block, start: Any, tokens: int, loss: str = "mse") -> Any:
    """The weights after distillation on so many tokens, kept where they judge better."""
    options = Distill(tokens=tokens, loss=loss)
    pupil = Pupil(half, start, {"start": lesson.kl(lesson.built(half, start))})
    (pupil,) = train(lesson, [pupil], options, range(tokens // options.batch_tokens))
    return pupil.weights


def losses(bench: Bench, layer: int) -> list[dict[str, Any]]:
    """KL of each half after the same tokens from the same start, by loss."""
    lesson, rows = bench.lesson(layer), []
    for text, loss in itertools.product(HALVES, ("mse", "cosine", "fisher")):
        half = Block.parse(text)
        weights = taught(lesson, half, begin(lesson, half).weights, 16_384, loss)
        kl = bench.kl(lesson, layer, Pupil(half, weights, {}))
        rows.append({"layer": layer, "half": text, "loss": loss, "kl": kl})
    return rows


def launched(work: Path, ranks: int, model: Path, settings: list[str]) -> dict[str, float]:
    """Trace, distill and nothing else, by so many ranks of one thread each."""
    out = work / f"{model.name}.{ranks}"
    words = [str(Path(__file__)), "--make", str(model), str(out), *settings]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    begin_s = time.monotonic()
    subprocess.run(
        [sys.executable, *(launch if ranks > 1 else []), *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    events = Run(out).events()
    return {
        "seconds": time.monotonic() - begin_s,
        **{event["stage"]: event["seconds"] for event in events if event["rank"] == 0},
        "peak_bytes": max(event["peak_bytes"] for event in events),
    }


def make(model: str, out: str, *settings: str) -> None:
    """What one rank of `launched` does."""
    config = load_config(None, [f"model={model}", *settings])
    parent, run = open_parent(model, config.dtype), Run(out)
    space = layer_blocks(parent.blocks, config.space, config.target)
    asked = config.tokens.model_dump()
    found = corpus.splits(
        "embedded", parent.tokenizer, length=config.sequence_length, tokens=asked, seed=0
    )
    with run.locked():
        make_library(run, parent, space, found, config)


def billion(work: Path) -> Path:
    """A random Llama of 1.03 billion parameters in float32, with SmolLM2's tokenizer."""
    folder = work / "billion"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49_152,
            hidden_size=2_048,
            intermediate_size=5_632,
            num_hidden_layers=18,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=2_048,
        )
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="1GB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((MODEL / name).read_bytes())
    return folder


def streamed(work: Path) -> dict[str, float]:
    """The library of a parent larger than the memory it may take."""
    folder = billion(work)
    settings = [
        *("target=hf", "space.attention=[100%,gqa2]", "space.ffn=[100%,50%,noop]"),
        *("tokens.calibration=4096", "tokens.scoring=512", "score.samples=1"),
        *("distill.tokens=4096", f"ceiling.memory={STREAMED_BYTES:.0f} B"),
    ]
    parent_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"parent_bytes": parent_bytes, **launched(work, 1, folder, settings)}


def ranked(work: Path, ranks: int) -> dict[str, float]:
    """A library of SmolLM2 with few tokens."""
    few = ["tokens.calibration=8192", "tokens.scoring=1024", "distill.tokens=8192"]
    return launched(work, ranks, MODEL, [*SPACE, *few])


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    """Do what is missing and write the results."""
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(work)
    counted = step(work, "cost", partial(cost, bench))
    curves = [
        row
        for layer in LAYERS
        for row in step(work, f"starts.{layer}", partial(starts, bench, layer))
    ]
    compared = [
        row
        for layer in LAYERS[1::3]
        for row in step(work, f"losses.{layer}", partial(losses, bench, layer))
    ]
    large = step(work, "streamed", partial(streamed, work))
    draw(curves, record.RESULTS / "library.svg")
    one, two = (step(work, f"ranks.{n}", partial(ranked, work, n)) for n in (1, 2))
    record.write(
        "library",
        summary(counted, curves, large, one, two),
        [
            {"kind": "cost", **counted},
            *({"kind": "start", **row} for row in curves),
            *({"kind": "loss", **row} for row in compared),
            {"kind": "streamed", **large},
            {"kind": "ranks", "ranks": 1, **one},
            {"kind": "ranks", "ranks": 2, **two},
        ],
    )


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    """KL by half and layer: sliced, as it starts, and after distillation."""
    ways = {"sliced": ("sliced", 0), "start": ("chosen", 0), "distilled": ("chosen", FROM_REFIT)}
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for half, axes in zip(HALVES, figure.subplots(1, len(HALVES), sharey=True)):
        for name, (way, tokens) in ways.items():
            rows = [r for r in curves if (r["half"], r["way"], r["tokens"]) == (half, way, tokens)]
            axes.plot([r["layer"] for r in rows], [r["kl"] for r in rows], "o-", label=name)
        axes.set(yscale="log", title=half.replace("+noop", "").replace("noop+", ""), xlabel="layer")
        axes.set_xticks(LAYERS)
    figure.axes[0].set_ylabel("KL per token")
    figure.axes[-1].legend()
    figure.savefig(path, metadata={"Date": None})


def summary(
    counted: dict[str, Any],
    curves: list[dict[str, Any]],
    large: dict[str, float],
    one: dict[str, float],
    two: dict[str, float],
) -> dict[str, Any]:
    """The figures the README quotes; KL are geometric means over layers and halves."""

    def kl(way: str, tokens: int) -> float:
        return geometric_mean(
            [row["kl"] for row in curves if (row["way"], row["tokens"]) == (way, tokens)]
        )

    chosen = kl("chosen", 0)
    reached = [tokens for tokens in (0, *FROM_SLICE) if kl("sliced", tokens) >= chosen]
    work_s = {name: run["trace"] + run["library"] for name, run in (("one", one), ("two", two))}
    return {
        "flops_ratio": counted["ratio"]["flops"],
        "cpu_ratio": counted["ratio"]["cpu_s"],
        "refit_equals_bld_tokens": max(reached),
        "kl_slice": kl("sliced", 0),
        "kl_refit": chosen,
        "kl_refit_bld": kl("chosen", FROM_REFIT),
        "kl_slice_bld": {str(tokens): kl("sliced", tokens) for tokens in FROM_SLICE},
        "two_rank_speedup": work_s["one"] / work_s["two"],
        "streamed_parent_bytes": large["parent_bytes"],
        "streamed_peak_bytes": large["peak_bytes"],
    }


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(*sys.argv[2:])
    else:
        main()
