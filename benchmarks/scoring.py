"""Scores against the exact KL: cost, agreement, and the children chosen under each.

    python benchmarks/scoring.py WORK [STEP ...]

SmolLM2-135M with 54 blocks a layer. The library is made from the embedded corpus; all scoring and
evaluation text is web text, in disjoint parts. WORK keeps the run directory: what is there is not
computed again, so a killed benchmark goes on. The steps are those of STEPS, all of them by default;
figures of a step that is not named stay as they were, with the commit they are of.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import record
import torch
from scoring_bench import (
    SAMPLES,
    Bench,
    chosen,
    evaluated,
    evaluations,
    exact_sample,
    fisher,
    mended,
    menus,
    rounds,
    sample,
    sampled,
)
from throughput import spearman

from puzzle import records
from puzzle.choose import choose
from puzzle.config import Doubt
from puzzle.score import scores
from puzzle.settle import settle
from puzzle.trace import backward, forward, head_gradients

BUDGETS = ("1.5x", "2x", "2.5x")
DOUBTS: tuple[Doubt, ...] = ("never", "saturated", "picked")
KINDS = ("fisher", "corrected", "saturated", "mse", "random")


def sweeps(bench: Bench) -> dict[str, float]:
    """CPU seconds of one forward and of K + 1 sweeps, of one sequence, scaled to all of them."""
    run, parent, last = bench.run, bench.parent, bench.parent.shape.layers

    def hidden(layer: int) -> torch.Tensor:
        return run.load_tensors(records.hidden("scoring", layer))["h"][:1]

    def forwards() -> None:
        for layer in range(last):
            forward(parent, layer, hidden(layer))

    def heads() -> None:
        with torch.no_grad():
            parent.head()(hidden(last)).float().log_softmax(-1)

    def backwards() -> None:
        gradient = head_gradients(parent, hidden(last), SAMPLES, 0)
        for layer in reversed(range(1, last)):
            gradient = backward(parent, layer, hidden(layer), gradient)

    scale = len(bench.texts["scoring"])
    return {
        name: bench.step(f"sweeps/{name}", make)["cpu_s"] * scale
        for name, make in (("layers", forwards), ("head", heads), ("backward", backwards))
    }


def agreement(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How Fisher scores, as they are and corrected, agree with the exact ones of the sample."""
    swaps, found = sampled(bench), scores(bench.run, bench.space)
    truth = [score["kl"] for score in exact_sample(bench).values()]
    rows = [
        {
            "kind": "block",
            "layer": swap.layer,
            "block": str(swap.blocks[0]),
            "exact": true["mean"],
            "exact_std_error": true["std_error"],
            **asdict(found.of(swap)),
        }
        for swap, true in zip(swaps, truth)
    ]
    table = pd.DataFrame(rows)
    truths = table["exact"].to_numpy()
    summary: dict[str, float] = {}
    for name, column in (("", "loss"), ("_uncorrected", "fisher")):
        layers = [part for _, part in table.groupby("layer") if len(part) >= 4]
        within = [spearman(part["exact"].to_numpy(), part[column].to_numpy()) for part in layers]
        ratio = table[column] / table["exact"]
        summary[f"spearman{name}"] = spearman(truths, table[column].to_numpy())
        summary[f"spearman_within_layer{name}"] = statistics.mean(within)
        summary[f"median_ratio{name}"] = float(ratio.median())
        summary[f"log_ratio_sd{name}"] = float(np.log(ratio).std())
    return summary, rows


def costs(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """CPU seconds of scoring every block, each way; naive and prefix reuse scaled from the sample.

    A naive score runs the layers below the block too, whose time is measured layer by layer.
    """
    took, swaps, blocks = sweeps(bench), sampled(bench), sum(map(len, bench.space))
    prefix = sample(bench) / len(swaps)
    below = statistics.mean(swap.layer for swap in swaps) / len(bench.space) * took["layers"]
    one = took["layers"] + took["head"]
    fisher_s = one + took["backward"] + fisher(bench)
    seconds = {
        "naive": (prefix + below) * blocks,
        "prefix": prefix * blocks,
        "fisher": fisher_s,
        "lazy": fisher_s + prefix * evaluations(bench, "2x", "saturated"),
    }
    rows = [
        {"kind": "cost", "scorer": name, "cpu_s": each, "forwards": each / one}
        for name, each in seconds.items()
    ]
    summary = {
        "naive_over_fisher": seconds["naive"] / fisher_s,
        "prefix_over_fisher": seconds["prefix"] / fisher_s,
    }
    return summary, rows


def regret(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """On the space of the sampled blocks: the exact loss of the lazy choice over the optimum's."""
    swaps = sampled(bench)
    truth = {swap: score["kl"]["mean"] for swap, score in exact_sample(bench).items()}
    rows = []
    for throughput in ("1.1x", "1.25x", "1.4x"):
        found, made = menus(bench, throughput)
        own = bench.parent.blocks
        losses = [
            {block: loss for block, loss in layer.items() if block == own[number]}
            | {swap.blocks[0]: layer[swap.blocks[0]] for swap in swaps if swap.layer == number}
            for number, layer in enumerate(found.losses)
        ]
        small = replace(made["corrected"], losses=losses, removals={})
        known = small.with_losses(truth)
        best = choose(known)[0]
        row = {"kind": "regret", "throughput": throughput, "optimum": best.loss}
        for doubt in DOUBTS:
            settled, count = settle(bench.library, small, found, doubt)
            blocks = choose(settled)[0].blocks
            lost = sum(layer[block] for layer, block in zip(known.losses, blocks)) - best.loss
            row |= {f"{doubt}_regret": lost, f"{doubt}_evaluations": count}
        rows.append(row)
    return {"lazy_exact_regret": max(row["picked_regret"] for row in rows)}, rows


def children(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The KL of the children chosen each way at each budget, on text that chose nothing."""
    pairs = [(throughput, kind) for throughput in BUDGETS for kind in KINDS]
    choices = [chosen(bench, *pair) for pair in pairs]
    kls = dict(zip(pairs, evaluated(bench, choices)))
    rows = [
        {
            "kind": "child",
            "throughput": throughput,
            "scorer": kind,
            "predicted": choice.loss,
            "kl": float(kls[throughput, kind].mean()),
            **compared(kls[throughput, kind], kls[throughput, "corrected"]),
            "evaluations": evaluations(bench, throughput, kind),
            "blocks": " ".join(map(str, choice.blocks)),
        }
        for (throughput, kind), choice in zip(pairs, choices)
    ]

    def ratio(kind: str, to: str) -> float:
        logs = [(kls[b, kind].mean() / kls[b, to].mean()).log() for b in BUDGETS]
        return float(torch.stack(logs).mean().exp())

    summary = {
        "lazy_exact_evaluations": evaluations(bench, "2x", "saturated"),
        "lazy_child_over_fisher_child_kl": ratio("saturated", "corrected"),
        "mse_child_over_fisher_child_kl": ratio("mse", "corrected"),
        "random_child_over_fisher_child_kl": ratio("random", "corrected"),
        "uncorrected_child_over_fisher_child_kl": ratio("fisher", "corrected"),
    }
    return summary, rows


def compared(kls: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
    """The ratio of two children's KL, and its paired bootstrap interval over sequences."""
    draws = torch.randint(len(kls), (4000, len(kls)), generator=torch.Generator().manual_seed(0))
    ratios = kls[draws].mean(dim=1) / others[draws].mean(dim=1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"ratio": float(kls.mean() / others.mean()), "ratio_low": low, "ratio_high": high}


def further_rounds(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The children of a second and a third round against that of the first; no round trains."""
    children = rounds(bench, "2x", 3)
    first, *later = evaluated(bench, children)
    rows = [
        {"kind": "rounds", "round": number, "scoring_kl": child.measured_kl, **compared(kls, first)}
        for number, (child, kls) in enumerate(zip(children, [first, *later]), start=1)
    ]
    names = ("two_round_kl_ratio", "three_round_kl_ratio")
    return {name: row["ratio"] for name, row in zip(names, rows[1:])}, rows


def mending(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The child's KL before and after its last matrices are refit on its own stream."""
    choice = chosen(bench, "2x", "saturated")
    [before] = evaluated(bench, [choice])
    step = mended(bench, choice)
    row = {"kind": "mended", "before": float(before.mean()), "cpu_s": step["cpu_s"], **step["data"]}
    return {"mended_over_child_kl": row["kl"] / row["before"]}, [row]


def picked(bench: Bench) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The child for which every picked block was scored exactly, at the middle budget."""
    choices = [chosen(bench, "2x", kind) for kind in ("picked", "corrected")]
    kls = evaluated(bench, choices)
    row = {
        "kind": "child",
        "throughput": "2x",
        "scorer": "picked",
        "predicted": choices[0].loss,
        "kl": float(kls[0].mean()),
        **compared(*kls),
        "evaluations": evaluations(bench, "2x", "picked"),
    }
    return {"picked_child_over_fisher_child_kl": row["ratio"]}, [row]


# in order of importance; each goes on where it was killed
STEPS: dict[str, record.Step[Bench]] = {
    "agreement": agreement,
    "children": children,
    "mending": mending,
    "regret": regret,
    "costs": costs,
    "rounds": further_rounds,
    "picked": picked,
}


def main() -> None:
    """Do what is missing, and write what there is after every step."""
    torch.set_num_threads(1)
    bench = Bench(Path(sys.argv[1]))
    fisher(bench)
    record.take_steps("scoring", STEPS, bench)


if __name__ == "__main__":
    main()
