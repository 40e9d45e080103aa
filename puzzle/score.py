"""Scores: what replacing one parent layer by a block costs, in KL per token, to second order.

Fisher score, per-token form (see fisher.py): nothing is rerun, a block costs one forward of its own
layer and a dot product. Attention is computed once per attention variant and shared by all FFN
variants on top of it.

Legend: K samples, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.fisher import per_token
from puzzle.library import Library
from puzzle.progress import track
from puzzle.ranks import here
from puzzle.run import Run, fingerprint
from puzzle.spread import std_error

BATCH_SEQUENCES = 8


def score(run: Run, library: Library, space: Sequence[Sequence[Block]], inputs: str) -> str:
    """Write the missing scores of this rank's layers; returns their fingerprint.

    A record maps each block to `loss` (KL per token, smaller is better), `std_error` over
    sequences, and `change`: |d| relative to the stream, squared and averaged; where it is not
    small the second order cannot be trusted.

    Args:
        space: per layer, the composed blocks to score.
        inputs: fingerprint of the library, which knows of the trace.
    """
    for layer in track(here().mine(len(space)), "scores"):
        print_ = fingerprint("scores", inputs, [str(block) for block in space[layer]])
        if not run.fresh(records.scores(layer), print_):
            run.save(records.scores(layer), score_layer(run, library, layer, space[layer]), print_)
    return fingerprint("scores", inputs, [[str(b) for b in blocks] for blocks in space])


def losses(run: Run, space: Sequence[Sequence[Block]]) -> tuple[dict[Block, float], ...]:
    """Per layer, the loss of each block of the space, from the records."""
    layers = [run.load(records.scores(layer)) for layer in range(len(space))]
    for layer, (scores, blocks) in enumerate(zip(layers, space)):
        if missing := [str(block) for block in blocks if str(block) not in scores]:
            raise PuzzleError(
                f"{run.folder} has no score of {missing[0]} in layer {layer} "
                f"({len(missing)} blocks lack one); run `puzzle search` on it again"
            )
    return tuple(
        {block: scores[str(block)]["loss"] for block in blocks}
        for scores, blocks in zip(layers, space)
    )


def score_layer(
    run: Run, library: Library, layer: int, blocks: Sequence[Block]
) -> dict[str, dict[str, float]]:
    """Scores of the blocks of one layer, by their text form."""
    enter = run.load_tensors(records.hidden("scoring", layer))["h"]
    leave = run.load_tensors(records.hidden("scoring", layer + 1))["h"]
    gradient = run.load_tensors(records.gradient(layer + 1))["g"]
    scores = {}
    for block, output in outputs(library, layer, blocks, enter):
        change = output - leave
        quadratic = per_token(gradient, change)
        relative = change.float().square().sum(-1) / leave.float().square().sum(-1)
        scores[str(block)] = {
            "loss": float(quadratic.mean()),
            "std_error": std_error(quadratic),
            "change": float(relative.mean()),
        }
    return scores


@torch.no_grad()
def outputs(
    library: Library, layer: int, blocks: Sequence[Block], enter_STD: torch.Tensor
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Each block with what it makes of the layer's input [S, T, D]; attention is shared."""
    batches = enter_STD.split(BATCH_SEQUENCES)
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
