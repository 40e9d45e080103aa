"""Puzzle at full size on paper: no weights, no GPU, about ten seconds on one core.

1. Predicted throughput of Llama-3.1-70B and of a published child of it on H100s, beside the table
   of the Puzzle paper. Nothing was fitted to that table.
2. The search half at 70B on one H100 and at 405B on eight: the space, what every block costs, and
   the integer program that chooses one block for each layer.

THE SCORES IN PART 2 ARE SYNTHETIC. They stand in for what `puzzle search` measures with the
parent's weights, so the children they lead to are examples of the machinery, not models.

    python examples/llama70b_on_h100.py
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import groupby

import numpy as np

from puzzle.architecture import Architecture
from puzzle.blocks.variant import FFN, GQA, Block
from puzzle.budget import Budget
from puzzle.choose import choose
from puzzle.config import Space
from puzzle.hardware.estimate import estimate
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.price import price
from puzzle.hardware.published import model
from puzzle.hardware.throughput import reference_of
from puzzle.menu import Losses, Menu
from puzzle.shape import Shape
from puzzle.space import layer_blocks
from puzzle.units import show

PARENT, CHILD = "llama-3.1-70b", "nemotron-super-49b"

# Puzzle (arXiv 2411.19146): tokens per second per GPU on H100s in float8, (figure, GPUs a model).
# The paper's child is Nemotron-51B, whose list of blocks is not public; the one predicted here is
# its successor Nemotron-Super-49B, found by the same method. TensorRT-LLM 0.17's own documentation
# has the parent at 128/128 on one H100 28 % above the paper's baseline.
PAPER = {
    "128/128": ((2645, 1), (5478, 1)),
    "128/1024": ((2975, 4), (6472, 1)),
    "128/2048": ((2786, 4), (4910, 2)),
    "128/4096": ((1828, 4), (3855, 2)),
    "2048/128": ((339, 4), (653, 1)),
    "2048/2048": ((1336, 4), (2622, 2)),
}

SPACE = Space(
    attention=["100%", "50%", "25%", "12.5%", "noop"],
    ffn=["100%", "87%", "75%", "50%", "25%", "20%", "10%", "noop"],
)
ONE_H100 = Budget.model_validate(
    {
        "name": "one H100",
        "hardware": "h100-sxm",
        "workload": {
            "prompt_tokens": 128,
            "new_tokens": 1024,
            "batches": [8, 16, 24, 32, 64, 128, 192, 256],
            "weights": "float8",
            "kv": "float8",
        },
        "targets": {"throughput": "5500 tok/s"},  # of the paper's child at 128/128
    }
)
EIGHT_H100 = Budget.model_validate(
    {
        **ONE_H100.model_dump(),
        "name": "eight H100",
        "gpus": 8,
        "targets": {"throughput": "1.53x"},  # FFN Fusion (arXiv 2503.18908), before it fuses
    }
)


def beside_the_paper() -> None:
    """Print predictions and the paper's figures, parent and child."""
    print(f"Tokens per second per GPU, H100, float8: {PARENT} and a child, predicted | paper")
    print(f"{'workload':>10}  {'parent':>20}  {'child':>20}  {'speedup':>14}")
    for workload, figures in PAPER.items():
        cells, rates = [], []
        for name, (paper, gpus) in zip((PARENT, CHILD), figures):
            best = estimate(name, f"{gpus}xh100-sxm", workload).best
            cells.append(f"{best.tokens_per_s:,.0f} | {paper:,} (x{gpus})")
            rates.append((best.tokens_per_s, paper))
        (parent, paper_parent), (child, paper_child) = rates
        speedup = f"{child / parent:.2f} | {paper_child / paper_parent:.2f}"
        print(f"{workload:>10}  {cells[0]:>20}  {cells[1]:>20}  {speedup:>14}")


def synthetic_losses(shape: Shape, blocks: tuple[tuple[Block, ...], ...]) -> Losses:
    """SYNTHETIC scores: convex in what a half loses, its layers unequal, the first the dearest."""
    draw = np.random.default_rng(0)
    losses: list[dict[Block, float]] = []
    for layer, options in enumerate(blocks):
        edge = 1 + 4 * np.exp(-layer / 4) + np.exp((layer - shape.layers) / 4)
        attention, ffn = edge * draw.lognormal(-5, 0.7, size=2)
        losses.append({block: _loss(shape, block, attention, ffn) for block in options})
    return losses


def _loss(shape: Shape, block: Block, attention: float, ffn: float) -> float:
    heads = block.attention.kv_heads if isinstance(block.attention, GQA) else 0
    width = block.ffn.intermediate_size if isinstance(block.ffn, FFN) else 0
    lost_heads = 0.3 * np.log2(shape.kv_heads / heads) / 3 if heads else 1.0
    lost_width = (1 - width / shape.intermediate_size) ** 1.5
    halves = attention * lost_heads + ffn * lost_width
    return float(halves + 0.3 * min(attention * lost_heads, ffn * lost_width))


def search(name: str, budget: Budget) -> None:
    """Space, costs and choice for a parent of this size, and what came out."""
    begin = time.perf_counter()
    shape, parents = model(name)
    blocks = layer_blocks(parents, SPACE, "vllm")
    source = Modeled(Roofline(budget.device), shape, budget.workload, budget.gpus)
    prices = price(shape, "llama", blocks, budget, source)
    reference = reference_of(shape, budget, source)
    menu = Menu(synthetic_losses(shape, blocks), prices, budget, reference)
    child = choose(menu)[0]
    size = np.log10([len(options) for options in blocks]).sum()
    print(f"\n{name} on {budget.name}: {len(blocks[1])} blocks a layer, 1e{size:.0f} architectures")
    for label, found in (("parent", reference), ("child", child.prediction)):
        print(
            f"  {label:<7}{found.params / 1e9:6.1f} B parameters, batch {found.batch} on each of "
            f"{found.gpus if label == 'parent' else budget.gpus} GPUs: "
            f"{show(found.tokens_per_s, 'tok/s')} per GPU, {show(found.memory_bytes, 'B')} of "
            f"memory each"
        )
    print(f"  {child.proof['status']} by {child.proof['proof']}; scores are SYNTHETIC")
    print(f"  kinds of blocks: {_kinds(child.architecture(name))}")
    print(f"  {time.perf_counter() - begin:.1f} s for space, costs and integer program")


def _kinds(architecture: Architecture) -> str:
    common = Counter(architecture.blocks).most_common(4)
    runs = sum(1 for _ in groupby(architecture.blocks))
    named = ", ".join(f"{count} x {block}" for block, count in common)
    return f"{len(architecture.counts())} in {runs} runs; {named}, ..."


if __name__ == "__main__":
    beside_the_paper()
    search(PARENT, ONE_H100)
    search("llama-3.1-405b", EIGHT_H100)
