"""Scores: what replacing one parent layer by a block costs, in KL per token, to second order.

Fisher score, per-token form (see fisher.py): nothing is rerun, a block costs one forward of its own
layer and a dot product. Attention is computed once per attention variant and shared by all FFN
variants on top of it.

What is understated where a block changes the stream much is corrected by the size of the change;
blocks beyond any second-order score are said to be saturated (settle.py can score them exactly). A
run of layers removed whole is scored the same way, by what enters it and what should leave it, and
by what its layers cost one by one: the one is too low for long runs, the other too high.

Legend: K samples, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from puzzle import records
from puzzle.blocks.variant import NOTHING, Block
from puzzle.device import at_once
from puzzle.errors import PuzzleError
from puzzle.fisher import FISHER_POWER, corrected, per_token, relative_change
from puzzle.library import Library
from puzzle.progress import track
from puzzle.ranks import here
from puzzle.run import Run, fingerprint
from puzzle.spread import std_error
from puzzle.swap import Swap

BATCH_SEQUENCES = 8
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
    run: Run, library: Library, space: Sequence[Sequence[Block]], longest: int, inputs: str
) -> None:
    """Write the missing scores of this rank's layers, and those of removed runs.

    A record maps each block to the fields of its `Score`.

    Args:
        space: per layer, the composed blocks to score.
        longest: the most layers in a row that may be removed as one.
        inputs: fingerprint of the library, which knows of the trace.
    """
    for layer in track(here().mine(len(space)), "scores"):
        print_ = _print(inputs, space[layer])
        if not run.fresh(records.scores(layer), print_):
            run.save(records.scores(layer), score_layer(run, library, layer, space[layer]), print_)
    if here().leads:
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


def require_current(library: Library, space: Sequence[Sequence[Block]]) -> None:
    """PuzzleError where the scores are not of the library as it is now."""
    for layer, blocks in enumerate(space):
        names = {name for block in blocks for name in library.sources(layer, block)}
        prints = {library.run.fingerprint_of(name) for name in names}
        wanted = [_print(str(made), blocks) for made in prints]
        if wanted and not (len(wanted) == 1 and library.run.fresh(records.scores(layer), *wanted)):
            raise PuzzleError(
                f"the scores of layer {layer} in {library.run.folder} are of an earlier library; "
                "run `puzzle search` on it again"
            )


def _print(inputs: str, blocks: Sequence[Block]) -> str:
    """The fingerprint of the scores of a layer's blocks, `inputs` being the library's."""
    return fingerprint("corrected scores", inputs, [str(block) for block in blocks])


def scores(run: Run, space: Sequence[Sequence[Block]]) -> Scores:
    """The scores of a space, from the records."""
    loaded = [run.load(records.scores(layer)) for layer in range(len(space))]
    for layer, (found, blocks) in enumerate(zip(loaded, space)):
        if missing := [str(block) for block in blocks if str(block) not in found]:
            raise PuzzleError(
                f"{run.folder} has no score of {missing[0]} in layer {layer} "
                f"({len(missing)} blocks lack one); run `puzzle search` on it again"
            )
    layers = tuple(
        {block: Score(**found[str(block)]) for block in blocks}
        for found, blocks in zip(loaded, space)
    )
    whole = {tuple(row.pop("run")): Score(**row) for row in run.load(records.removals())}
    removals = {
        stretch: _joint(score, [layers[layer][NOTHING] for layer in range(*stretch)])
        for stretch, score in whole.items()
    }
    return Scores(layers, removals)


def _joint(whole: Score, alone: Sequence[Score]) -> Score:
    """The score of a run: the geometric mean of its own as one and the sum of its layers'."""
    factor = (sum(score.loss for score in alone) / max(whole.loss, TINY)) ** 0.5
    return replace(whole, loss=factor * whole.loss, std_error=factor * whole.std_error)


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
    fisher, change = float(quadratic.mean()), relative_change(change_STD, leave_STD)
    loss = corrected(fisher, change)
    relative_error = FISHER_POWER * std_error(quadratic) / max(fisher, TINY)
    return {
        "loss": loss,
        "fisher": fisher,
        "std_error": loss * relative_error,
        "change": change,
    }


@torch.no_grad()
def outputs(
    library: Library, layer: int, blocks: Sequence[Block], enter_STD: torch.Tensor
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Each block with what it makes of the layer's input [S, T, D]; attention is shared."""
    batches = enter_STD.split(at_once(BATCH_SEQUENCES))
    if library.coupled:
        for block in blocks:
            module = library.layer(layer, block)
            context = library.parent.context(enter_STD[:1], module.window)
            yield block, torch.cat([module(batch, **context) for batch in batches])
        return
    feeds = {ffn: library.ffn(layer, ffn) for ffn in {block.ffn for block in blocks}}
    for variant in dict.fromkeys(block.attention for block in blocks):
        half = library.attention(layer, variant)
        context = library.parent.context(enter_STD[:1], half.window)
        middles = [half.attend(batch, **context) for batch in batches]
        for block in blocks:
            if block.attention == variant:
                yield block, torch.cat([feeds[block.ffn].feed(middle) for middle in middles])
