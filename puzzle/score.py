"""Scores: what replacing one parent layer by a block costs, in KL per token, to second order.

Fisher score, per-token form (method: the KL of a small change is half its Fisher quadratic form).
With d_s the change a block makes to the layer's output at position s, and g_s a sampled Fisher
gradient there (see trace.py), `KL ~ 1/2 E sum_s (g_s . d_s)^2`, averaged over tokens. Nothing is
rerun: a block costs one forward of its own layer and a dot product. Attention is computed once per
attention variant and shared by all FFN variants on top of it.

What is understated where a block changes the stream much is corrected by the size of the change;
blocks beyond any second-order score are said to be saturated (settle.py scores them exactly). A run
of layers removed whole is scored the same way, by what enters it and what should leave it.

Two forms: the sequence form `1/2 E (sum_s g_s . d_s)^2` is unbiased to second order; the per-token
form drops the cross terms between positions, is exact at the last layer only, and ranks better
from few samples because its variance is far lower. It is the default.

Legend: K samples, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.library import Library
from puzzle.progress import track
from puzzle.run import Run, fingerprint
from puzzle.spread import std_error
from puzzle.swap import NOTHING, Swap

BATCH_SEQUENCES = 8
SCALE, FISHER_POWER, CHANGE_POWER = 2.6, 0.66, 0.45
TINY = 1e-30
SATURATED = 0.1  # relative change above which a score is doubtful


@dataclass(frozen=True)
class Score:
    """What a swap is thought to cost."""

    loss: float  # KL per token, corrected
    fisher: float  # the quadratic form itself
    std_error: float  # of the loss, over sequences
    change: float  # |d|^2 / |h|^2, averaged over tokens

    @property
    def saturated(self) -> bool:
        """True where the change is too large for a second-order loss to be trusted."""
        return self.change > SATURATED


@dataclass(frozen=True)
class Scores:
    """The Fisher scores of a space: of every block of every layer, and of runs removed whole."""

    blocks: tuple[dict[Block, Score], ...]
    removals: dict[tuple[int, int], Score]

    @property
    def losses(self) -> tuple[dict[Block, float], ...]:
        """The loss of each block of each layer."""
        return tuple({block: score.loss for block, score in layer.items()} for layer in self.blocks)

    def of(self, swap: Swap) -> Score:
        """The score of a single block or of a removed run."""
        if len(swap.blocks) > 1:
            return self.removals[swap.run]
        return self.blocks[swap.layer][swap.blocks[0]]


def score(
    run: Run,
    library: Library,
    space: Sequence[Sequence[Block]],
    longest: int,
    inputs: tuple[str, str],
) -> None:
    """Write the scores of every layer's blocks, and of removed runs, where they are missing.

    A record maps each block to the fields of its `Score`.

    Args:
        space: per layer, the composed blocks to score.
        longest: the most layers in a row that may be removed as one.
        inputs: fingerprints of the trace and of the library.
    """
    for layer in track(range(len(space)), "scores"):
        print_ = fingerprint("corrected scores", inputs, [str(block) for block in space[layer]])
        if not run.fresh(records.scores(layer), print_):
            run.save(records.scores(layer), score_layer(run, library, layer, space[layer]), print_)
    runs = removable(space, longest)
    print_ = fingerprint("corrected removals", inputs, runs)
    run.remember(records.removals(), print_, lambda: score_removals(run, runs))


def removable(space: Sequence[Sequence[Block]], longest: int) -> list[tuple[int, int]]:
    """Runs of 2 to `longest` layers each of which may hold nothing, as (start, stop)."""
    return [
        (start, stop)
        for start in range(len(space))
        for stop in range(start + 2, min(start + longest, len(space)) + 1)
        if all(NOTHING in options for options in space[start:stop])
    ]


def scores(run: Run, space: Sequence[Sequence[Block]]) -> Scores:
    """The scores of a space, from the records."""
    layers = [run.load(records.scores(layer)) for layer in range(len(space))]
    for layer, (found, blocks) in enumerate(zip(layers, space)):
        if missing := [str(block) for block in blocks if str(block) not in found]:
            raise PuzzleError(
                f"{run.folder} has no score of {missing[0]} in layer {layer} "
                f"({len(missing)} blocks lack one); run `puzzle search` on it again"
            )
    return Scores(
        tuple(
            {block: Score(**found[str(block)]) for block in blocks}
            for found, blocks in zip(layers, space)
        ),
        {tuple(row.pop("run")): Score(**row) for row in run.load(records.removals())},
    )


def score_layer(
    run: Run, library: Library, layer: int, blocks: Sequence[Block]
) -> dict[str, dict[str, float]]:
    """Scores of the blocks of one layer, by their text form."""
    enter = run.load_tensors(records.hidden("scoring", layer))["h"]
    leave = run.load_tensors(records.hidden("scoring", layer + 1))["h"]
    gradient = run.load_tensors(records.gradient(layer + 1))["g"]
    return {
        str(block): scored(gradient, output - leave, leave)
        for block, output in outputs(library, layer, blocks, enter)
    }


def score_removals(run: Run, runs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Scores of runs of layers taken out: what enters them comes out as it is."""

    def row(start: int, stop: int) -> dict[str, Any]:
        enter, leave = (run.load_tensors(records.hidden("scoring", i))["h"] for i in (start, stop))
        gradient = run.load_tensors(records.gradient(stop))["g"]
        return {"run": (start, stop), **scored(gradient, enter - leave, leave)}

    return [row(start, stop) for start, stop in runs]


def scored(
    gradient_KSTD: torch.Tensor, change_STD: torch.Tensor, leave_STD: torch.Tensor
) -> dict[str, float]:
    """The fields of the score of a change to the stream that leaves a layer."""
    quadratic = per_token(gradient_KSTD, change_STD)
    relative = change_STD.float().square().sum(-1) / leave_STD.float().square().sum(-1)
    fisher, change = float(quadratic.mean()), float(relative.mean())
    loss = corrected(fisher, change)
    relative_error = FISHER_POWER * std_error(quadratic) / max(fisher, TINY)
    return {
        "loss": loss,
        "fisher": fisher,
        "std_error": loss * relative_error,
        "change": change,
    }


def corrected(fisher: float, change: float) -> float:
    """The KL to expect, by what blocks of two models really cost (benchmarks/LOG.md).

    The form understates large changes, and in layers where gradients are few and large it is noisy;
    the change of the stream knows nothing of what matters, but is sure. Their weighted geometric
    mean is nearer to the exact KL than either.
    """
    return SCALE * fisher**FISHER_POWER * change**CHANGE_POWER


@torch.no_grad()
def outputs(
    library: Library, layer: int, blocks: Sequence[Block], enter_STD: torch.Tensor
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Each block with what it makes of the layer's input [S, T, D]; attention is shared."""
    feeds = {ffn: library.ffn(layer, ffn) for ffn in {block.ffn for block in blocks}}
    batches = enter_STD.split(BATCH_SEQUENCES)
    for variant in dict.fromkeys(block.attention for block in blocks):
        half = library.attention(layer, variant)
        context = library.parent.context(enter_STD[:1], half.window)
        middles = [half.attend(batch, **context) for batch in batches]
        for block in blocks:
            if block.attention == variant:
                yield block, torch.cat([feeds[block.ffn].feed(middle) for middle in middles])


def per_token(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    """`1/2 mean_k (g . d)^2` averaged over the tokens of each sequence [S]."""
    return _products(gradient_KSTD, change_STD).square().mean(dim=(0, 2)) / 2


def per_sequence(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    """`1/2 mean_k (sum_t g . d)^2` divided by the tokens of each sequence [S]; unbiased."""
    products = _products(gradient_KSTD, change_STD)
    return products.sum(dim=2).square().mean(dim=0) / (2 * products.shape[2])


def _products(gradient_KSTD: torch.Tensor, change_STD: torch.Tensor) -> torch.Tensor:
    return torch.einsum("kstd,std->kst", gradient_KSTD.float(), change_STD.float())
