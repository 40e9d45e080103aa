"""What a search chooses from for this CPU: the scored library at times measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import throughput_cpu
from scoring_bench import DTYPE, MODEL, Bench, Scale, fisher

from puzzle.budget import Budget
from puzzle.config import Mend, Space
from puzzle.finalists import finalists
from puzzle.hardware.price import cost_source, price
from puzzle.hardware.profile import Profile
from puzzle.hardware.throughput import reference_of
from puzzle.menu import Choice, Menu
from puzzle.parent import open_parent
from puzzle.rounds import further
from puzzle.run import fingerprint
from puzzle.score import scores
from puzzle.space import layer_blocks

SPACE = Space(
    attention=("gqa3", "groups2", "groups1", "gqa1", "linear", "noop"),
    ffn=(*(f"ffn{width}" for width in throughput_cpu.FFN), "linear", "noop"),
)
SCALE = Scale(
    384, 42 * 384, 528 * 384, own=True, samples=4, distilled=294_912, dtype=DTYPE, mending=3
)
MEND = Mend(tokens=24 * 10 * SCALE.length, batch_tokens=4_096, dtype=DTYPE)  # 24 steps of ten
TAUGHT = f"own writing, {SCALE.calibration:,} tokens, blocks distilled on {SCALE.distilled:,}"
FINALISTS, ROUNDS = 16, 5  # as a search has them unless told otherwise


def library(work: Path, seed: int = 0) -> Bench:
    """The library of this space; of a rank its own layers."""
    return Bench(work, SPACE, replace(SCALE, seed=seed))


def unpruned(work: Path, seed: int = 0) -> Bench:
    """The parent's own blocks alone with their texts: all that other people's methods need."""
    space = [(block,) for block in open_parent(str(MODEL)).blocks]
    return Bench(work, space, replace(SCALE, seed=seed))


def scored(work: Path, seed: int = 0) -> Bench:
    """The library with its scores."""
    bench = library(work, seed)
    fisher(bench)
    return bench


def cpu_budget(name: str, limits: dict[str, Any]) -> Budget:
    """The workload of `throughput_cpu.py` on this CPU, under these limits and targets."""
    work = throughput_cpu.WORK.model_dump()
    return Budget.model_validate(
        {"name": name, "hardware": "cpu-laptop", "workload": work, **limits}
    )


def cpu_menu(bench: Bench, budget: Budget) -> Menu:
    """What to choose from; halves are timed where the table of times is missing."""
    parent, table = bench.parent, throughput_cpu.FOLDER / "halves.csv"
    if not table.exists():
        table.parent.mkdir(parents=True, exist_ok=True)
        Profile(str(MODEL), budget.workload, table, SPACE).run()
    space = layer_blocks(parent.blocks, SPACE, "hf")
    source = cost_source(str(table), parent.shape, budget)
    prices = price(parent.shape, parent.family, space, budget, source)
    found = scores(bench.run, space)
    removals = {layers: each.loss for layers, each in found.removals.items()}
    return Menu(found.losses, prices, budget, reference_of(parent.shape, budget, source), removals)


def searched(bench: Bench, menu: Menu) -> Choice:
    """The child of a search: the nearest of its finalists, then in rounds."""

    def best() -> dict[str, Any]:
        first = finalists(bench.library, menu, FINALISTS)[0]
        later = further(bench.library, menu, first, ROUNDS)
        return [first, *later][-1].as_record()

    inputs = fingerprint("at several weights", menu.digest(), FINALISTS, ROUNDS)
    return Choice.from_record(
        bench.run.remember(f"bench/searched/{menu.budget.name}", inputs, best)
    )
