"""Scores around a child: what another block in one of its layers would change its own KL by.

The target stays the parent p, the point is the child q, so KL(p || q) has a first-order term. With
d the change a block makes to the child's stream after its layer, g1 the gradient of KL(p || q)
there and g the Fisher gradients of labels drawn from q, a block changes it by about
`g1.d + 1/2 E (g.d)^2` a token. It may be negative: the child gets nearer to the parent. The child's
own block scores zero. Where a block changes both halves, the changes of each are added: blocks of a
layer then take a forward a half instead of one a pair.

Children that have lost a lot are far from quadratic: the form explodes where gradients are large,
and the slope promises what the next step of its size would take back. So the curvature is bounded
by the change of the stream, and what remains is damped by the form itself (benchmarks/LOG.md).

Legend: K samples, S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.fisher import dot, relative_change
from puzzle.library import Library
from puzzle.progress import track
from puzzle.score import outputs
from puzzle.swap import Blocks
from puzzle.trace import backward, forward, head_gradients, kl_gradient

CURVATURE = 3.0  # nats by the relative change of the stream, at most
MODEL = "child"  # its trace is that of the last child looked around


@dataclass(frozen=True)
class Child:
    """A child of library blocks, one layer at a time, on every `step`th scoring sequence."""

    library: Library
    blocks: Blocks
    step: int = 1

    def layer(self, layer: int) -> PuzzleLayer:
        """One layer as the child has it."""
        return self.library.layer(layer, self.blocks[layer])

    def context(self, hidden_BTD: torch.Tensor, window: int | None) -> dict[str, Any]:
        """What a layer with this window needs beside its input."""
        return self.library.parent.context(hidden_BTD, window)

    def head(self) -> nn.Sequential:
        """The parent's, which every child has."""
        return self.library.parent.head()


def around(
    child: Child, space: Sequence[Sequence[Block]], *, seed: int, inputs: str, samples: int = 1
) -> tuple[dict[Block, float], ...]:
    """Per layer, by how much each block would change the child's KL, from records where fresh.

    Args:
        samples: label draws; one tells as much as several, as most scores are bounded anyway.
        inputs: fingerprint of the library, the child, and what it is run on.
    """
    run = child.library.run
    names = [records.scores_around(layer) for layer in range(len(space))]
    if not all(run.fresh(name, inputs) for name in names):
        _sweep_up(child, inputs)
        sweep = _sweep_down(child, samples, seed)
        for layer, gradient in track(sweep, "around", len(space)):
            losses = _score_layer(child, layer, space[layer], gradient)
            run.save(names[layer], {str(block): loss for block, loss in losses.items()}, inputs)
    found = [run.load(name) for name in names]
    return tuple(
        {block: each[str(block)] for block in blocks} for each, blocks in zip(found, space)
    )


def _sweep_up(child: Child, inputs: str) -> None:
    """Write the child's streams on the scoring text where they are missing."""
    run = child.library.run
    names = [records.hidden("scoring", layer, MODEL) for layer in range(len(child.blocks) + 1)]
    if not run.fresh(names[0], inputs):
        run.save_tensors(names[0], {"h": _parent_stream(child, 0)}, inputs)
    for layer, name in enumerate(names[1:]):
        if not run.fresh(name, inputs):
            run.save_tensors(name, {"h": forward(child, layer, _stream(child, layer))}, inputs)


def _sweep_down(child: Child, samples: int, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Each layer, the last one first, with the gradients above it [1 + K, S, T, D], g1 first."""
    last = len(child.blocks)
    stream = _stream(child, last)
    first = kl_gradient(child, stream, _parent_stream(child, last))
    gradient = torch.cat([first[None], head_gradients(child, stream, samples, seed)])
    for layer in reversed(range(last)):
        yield layer, gradient
        if layer:
            gradient = backward(child, layer, _stream(child, layer), gradient)


def _score_layer(
    child: Child, layer: int, blocks: Sequence[Block], gradient: torch.Tensor
) -> dict[Block, float]:
    library, own = child.library, child.blocks[layer]
    enter, leave = _stream(child, layer), _stream(child, layer + 1)
    parts = {block: _parts(block, own, whole=library.coupled) for block in blocks}
    wanted = list(dict.fromkeys(part for each in parts.values() for part in each))
    products, changes = {}, {}
    for part, output in outputs(library, layer, wanted, enter):
        products[part] = dot(gradient, output - leave)
        changes[part] = relative_change(output - leave, leave)

    def loss(parts: Sequence[Block]) -> float:
        product_KST = torch.stack([products[part] for part in parts]).sum(dim=0)
        slope, form = product_KST[0].mean(), product_KST[1:].square().mean() / 2
        return damped(float(slope), float(form), sum(changes[part] for part in parts))

    return {block: loss(each) if each else 0.0 for block, each in parts.items()}


def _parts(block: Block, own: Block, *, whole: bool) -> list[Block]:
    """What a block changes of the child's own: its attention, and its FFN, as if one by one."""
    changed = (
        [block] if whole else [Block(block.attention, own.ffn), Block(own.attention, block.ffn)]
    )
    return [part for part in changed if part != own]


def damped(slope: float, form: float, change: float) -> float:
    """The change of the KL to expect, from its two orders and the relative change of the stream."""
    return (slope + min(form, CURVATURE * change)) / (1 + form)


def _stream(child: Child, layer: int) -> torch.Tensor:
    return child.library.run.load_tensors(records.hidden("scoring", layer, MODEL))["h"]


def _parent_stream(child: Child, layer: int) -> torch.Tensor:
    return child.library.run.load_tensors(records.hidden("scoring", layer))["h"][:: child.step]
