"""Children on this CPU: the sum of measured halves against measured generation.

Twenty random children of SmolLM2-135M's shape, layers all different, with random weights, which
take the same time as trained ones. Halves are timed on their own by `puzzle profile`; prompts and
new tokens of whole children by a plain greedy loop. Run on a quiet machine; what is measured is
kept in runs/throughput_cpu and not measured again.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from throughput import spearman

from puzzle.blocks.variant import Block, parse_attention, parse_ffn
from puzzle.budget import Workload
from puzzle.config import Space
from puzzle.export.modeling_puzzle import CACHE
from puzzle.hardware.devices import device
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.measure import random_model
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.profile import Profile, transformers_config
from puzzle.hardware.published import model
from puzzle.hardware.source import block_cost, outside_cost
from puzzle.hardware.tables import Measured
from puzzle.progress import track

MODEL = Path(__file__).parents[1] / "checkpoints" / "smollm2-135m"
FOLDER = Path(__file__).parents[1] / "runs" / "throughput_cpu"
CHILDREN, REPEATS = 20, 5
ATTENTION = ("gqa3", "gqa1", "linear", "noop")
FFN = (1536, 1280, 1024, 768, 512, 256)
QUIET = 1.5  # load average above which times are of the neighbours
WORK = Workload(prompt_tokens=128, new_tokens=64, batches=(1,), weights="float32", kv="float32")


def measured() -> None:
    """Time halves, then children; print and write the errors."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    if load > QUIET:
        print(f"the load is {load:.1f}: stop what else runs, or the times will not be this code's")
    space = Space(attention=ATTENTION, ffn=(*map("ffn{}".format, FFN), "linear", "noop"))
    profile = Profile(str(MODEL), WORK, FOLDER / "halves.csv", space)
    profile.run()
    shape, _ = model(MODEL)
    rest = Modeled(Roofline(device("cpu-laptop")), shape, WORK)
    source = Measured.of(profile.table, rest)
    rows = []
    for blocks, times in zip(children(shape.layers), timed(shape.layers)):
        costs = [block_cost(source, block, 1)[0] for block in blocks]
        total = sum(costs, outside_cost(source, 1)[0])
        rows.append(
            {
                "blocks": [str(block) for block in blocks],
                "predicted_prefill_s": total.prefill_s,
                "predicted_decode_s": total.decode_s,
                **times,
            }
        )
    figures = {**summary(rows), "load_average": round(load, 2)}
    print(json.dumps(figures, indent=1))
    print("wrote", record.write("throughput_cpu", figures, rows))


def children(layers: int) -> list[list[Block]]:
    """Random children, from nearly the parent to nearly nothing."""
    draw = random.Random(0)
    found = []
    for child in range(CHILDREN):
        kept = (child + 1) / CHILDREN
        found.append([_block(draw, kept) for _ in range(layers)])
    return found


def _block(draw: random.Random, kept: float) -> Block:
    others = [f"ffn{width}" for width in FFN] + ["linear"]
    attention = _pick(draw, kept, "gqa3", ["gqa3", "gqa1", "linear"])
    return Block(parse_attention(attention), parse_ffn(_pick(draw, kept, "ffn1536", others)))


def _pick(draw: random.Random, kept: float, own: str, others: list[str]) -> str:
    """The parent's, or else another; the less is kept, the more of these are no-ops."""
    if draw.random() < kept:
        return own
    return draw.choice(others) if draw.random() < kept else "noop"


def timed(layers: int) -> list[dict[str, float]]:
    """Measured seconds of every child's prompt and new tokens; resumes."""
    path = FOLDER / "children.json"
    known: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
    config = transformers_config(str(MODEL))
    for blocks in track(children(layers)[len(known) :], "children"):
        child = random_model(config, blocks, {"dtype": torch.float32, "device": "cpu"})
        runs = [generate(child) for _ in range(REPEATS)]
        prefill, decode = (statistics.median(times) for times in zip(*runs))
        known.append({"measured_prefill_s": prefill, "measured_decode_s": decode})
        path.write_text(json.dumps(known))
    return known


def generate(child: Any) -> tuple[float, float]:
    """Seconds of reading the prompt, and of the new tokens after the first."""
    read, *made = request(child)
    return read, sum(made)


def request(child: Any) -> Iterator[float]:
    """Seconds of every pass of one request: of the prompt, then of each new token.

    Not within a `torch.device`, which adds to every operation: 4 % to a child of half the time.
    """
    inputs = torch.randint(child.config.vocab_size, (1, WORK.prompt_tokens), device="cpu")
    cache: dict[str, Any] = {}
    for _ in range(1 + WORK.new_tokens):
        begin = time.perf_counter()
        with torch.inference_mode():
            output = child(inputs, use_cache=True, logits_to_keep=1, **cache)
            inputs, cache = output.logits[:, -1:].argmax(-1), {CACHE: output[CACHE]}
        yield time.perf_counter() - begin


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median errors and rank correlations of both phases; the worse of the two in front."""
    found: dict[str, Any] = {"cpu_children": len(rows)}
    for phase in ("prefill", "decode"):
        predicted, truth = (
            np.array([row[f"{kind}_{phase}_s"] for row in rows])
            for kind in ("predicted", "measured")
        )
        off = np.abs(predicted / truth - 1)
        found[f"cpu_{phase}_median_ape"] = round(float(np.median(off)), 4)
        found[f"cpu_{phase}_spearman"] = round(spearman(predicted, truth), 4)
    found["cpu_median_ape"] = max(found["cpu_prefill_median_ape"], found["cpu_decode_median_ape"])
    found["cpu_spearman"] = min(found["cpu_prefill_spearman"], found["cpu_decode_spearman"])
    return found
