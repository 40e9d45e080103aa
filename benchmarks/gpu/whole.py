"""Whole children on this GPU: the sum of measured halves against the measured pass.

    python benchmarks/gpu/whole.py TABLE [--model llama-3.1-8b] [--children 4]

TABLE is what `puzzle profile` wrote here. The parent and random children, layers all different and
weights random, read prompts and make one token at the table's batches and lengths, by torch's
modules and by our kernels, timed as the halves were: as CUDA graphs. Passes that would take longer
than LONGEST_S are left out. Written after every child to
`benchmarks/results/throughput_<device>.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from puzzle.blocks.variant import Block, NoOp
from puzzle.hardware.measure import EMPTY, Bench, Case, Way, random_layer, random_model
from puzzle.hardware.profile import device_name, transformers_config
from puzzle.hardware.published import model
from puzzle.hardware.source import halves
from puzzle.hardware.tables import OUTSIDE, read_table, shape_key

sys.path.insert(0, str(Path(__file__).parents[1]))
import record

TO = {"dtype": torch.bfloat16, "device": "cuda"}
LONGEST_S = 0.1  # of the parent's passes that are timed
ENOUGH_S = 50.0  # after which no other child is begun
Times = dict[tuple[str, Case], float]  # seconds by half and pass; the pass names no half


def main() -> int:
    """Time the parent and its children; 2 without a GPU, or without a table of this one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="what puzzle profile wrote")
    parser.add_argument("--model", default="llama-3.1-8b", help="a config.json, or a shipped name")
    parser.add_argument("--children", type=int, default=4)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This machine has no CUDA device, and whole children are timed on one.")
        return 2
    begin = time.monotonic()
    shape, parent = model(options.model)
    times = read(options.table, shape_key(shape))
    wanted = passes(times, parent)
    if not wanted:
        print(f"{options.table} times no pass of {options.model} on {device_name()}.")
        return 2
    bench = Bench(transformers_config(options.model), torch.bfloat16, "cuda")
    rows: list[dict[str, Any]] = []
    name = "throughput_" + re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    for child, blocks in enumerate([parent, *children(times, wanted, parent, options.children)]):
        if time.monotonic() - begin > ENOUGH_S:
            print(f"{ENOUGH_S:.0f} s have passed: the other children are left out")
            break
        rows.append({"child": child, "blocks": [str(block) for block in blocks]})
        for case, found in timed(bench, blocks, wanted):
            asked = {key: getattr(case, key) for key in ("kernels", "phase", "batch", "length")}
            rows.append({"child": child, **asked, "predicted_s": predicted(times, blocks, case)})
            rows[-1] |= found
            print(json.dumps(rows[-1]), flush=True)
        path = record.write(name, summary(rows), rows)
        print(f"{path}: {json.dumps(summary(rows))}", flush=True)
    return 0


def read(path: Path, shape: str) -> Times:
    """The table's seconds for this shape in bfloat16 on this device."""
    setting = (device_name(), shape, "bfloat16", "bfloat16")
    return {
        (t.half, Case(None, t.phase, t.batch, t.length, t.kernels)): t.seconds
        for t in read_table(path)
        if (t.device, t.shape, t.weights, t.kv) == setting
    }


def passes(times: Times, parent: tuple[Block, ...]) -> list[Case]:
    """Prompts, and tokens at the longer of their contexts, that the parent is fast enough at."""
    found = dict.fromkeys(case for half, case in times if half != OUTSIDE)
    prompts = {case.length for case in found if case.phase == "prefill"}
    return [
        case
        for case in found
        if (case.phase == "prefill" or case.length - 1 not in prompts)
        and needed(parent, case) <= times.keys()
        and predicted(times, parent, case) < LONGEST_S
    ]


def needed(blocks: tuple[Block, ...], case: Case) -> set[tuple[str, Case]]:
    """What a prediction reads."""
    names = {str(part) for block in blocks for part in halves(block)}
    return {(OUTSIDE, replace(case, kernels="torch")), *((name, case) for name in names)}


def predicted(times: Times, blocks: tuple[Block, ...], case: Case) -> float:
    """Seconds of a pass: those of its halves, and of torch's embedding, norm and head."""
    parts = [str(part) for block in blocks for part in halves(block)]
    outside_s = times[OUTSIDE, replace(case, kernels="torch")]
    return outside_s + sum(times[part, case] for part in parts)


def children(
    times: Times, wanted: list[Case], parent: tuple[Block, ...], count: int
) -> Iterator[tuple[Block, ...]]:
    """Random children, from nearly the parent to hardly anything of it."""
    names = dict.fromkeys(half for half, _ in times if half != OUTSIDE)
    whole = [Block.parse(name) for name in names if all((name, case) in times for case in wanted)]
    attention = [NoOp(), *(half.attention for half in whole if half.ffn == NoOp())]
    ffn = [NoOp(), *(half.ffn for half in whole if half.attention == NoOp())]
    draw = random.Random(0)
    for child in range(count):
        kept = 1 - (child + 1) / (count + 1)
        yield tuple(
            Block(
                own.attention if draw.random() < kept else draw.choice(attention),
                own.ffn if draw.random() < kept else draw.choice(ffn),
            )
            for own in parent
        )


@torch.inference_mode()
def timed(
    bench: Bench, blocks: tuple[Block, ...], wanted: list[Case]
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Measured seconds and spread of every pass, or why it failed."""
    parts = [part for block in blocks for part in halves(block)]
    layers = [(part, random_layer(bench.config, part, TO)) for part in parts]
    outside = random_model(bench.config, [EMPTY], TO)
    for case in wanted:
        try:
            shape = case.batch, case.tokens
            tokens = torch.randint(bench.config.vocab_size, shape, device=TO["device"])
            ways = [bench.ways(replace(case, half=part), [layer])[0] for part, layer in layers]
            seconds, spread = bench.sample([partial(whole, outside, ways, tokens)])
            found = {"measured_s": seconds, "spread": round(spread, 4)}
        except RuntimeError as error:
            found = {"failed": str(error).partition("\n")[0]}
        ways = []  # and the caches they hold
        torch.cuda.empty_cache()
        yield case, found


def whole(outside: Any, ways: list[Way], tokens: torch.Tensor) -> torch.Tensor:
    """The next token of every sequence."""
    stream = outside.model.embed_tokens(tokens)
    for way in ways:
        stream = way(stream)
    return outside.lm_head(outside.model.norm(stream)[:, -1]).argmax(-1)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and largest relative error by phase and kernels."""
    failed = sum("failed" in row for row in rows)
    found: dict[str, Any] = {"children": rows[-1]["child"], "failed": failed}
    errors: dict[str, list[float]] = {}
    for row in rows:
        if "measured_s" in row:
            error = abs(row["predicted_s"] / row["measured_s"] - 1)
            errors.setdefault(f"{row['phase']}_{row['kernels']}", []).append(error)
    for name, some in errors.items():
        found[f"{name}_median_ape"] = round(statistics.median(some), 4)
        found[f"{name}_max_ape"] = round(max(some), 4)
    return found


if __name__ == "__main__":
    sys.exit(main())
