"""Trial: finalists run for real, and the one nearest to the parent wins.

Summed scores rank children well from afar, but many children of nearly equal sums differ in their
own KL, because errors of neighboring layers add up or cancel. So the best few by the program are
measured on the scoring split. All go up through the layers together: a layer's blocks are loaded
once, and children share the stream of every prefix of blocks they have in common.

Legend: S sequences, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from puzzle import records
from puzzle.blocks.variant import Block
from puzzle.library import Library
from puzzle.menu import Choice
from puzzle.progress import track

BATCH_SEQUENCES = 8
Blocks = tuple[Block, ...]


def trial(library: Library, finalists: Sequence[Choice]) -> list[Choice]:
    """The finalists with their measured KL, nearest to the parent first."""
    kls = measure(library, [choice.blocks for choice in finalists])
    measured = [replace(choice, measured_kl=kl) for choice, kl in zip(finalists, kls)]
    return sorted(measured, key=lambda choice: choice.measured_kl or 0.0)


@torch.no_grad()
def measure(library: Library, children: Sequence[Blocks]) -> list[float]:
    """KL(parent || child) per token of each child on the traced scoring split."""
    layers = library.parent.shape.layers
    streams: dict[Blocks, torch.Tensor] = {(): _traced(library, 0)}
    for layer in track(range(layers), "trial"):
        prefixes = dict.fromkeys(blocks[: layer + 1] for blocks in children)
        streams = {
            prefix: _forward(library, layer, prefix[-1], streams[prefix[:-1]])
            for prefix in prefixes
        }
    kls = dict(zip(streams, _kls(library.parent.head(), _traced(library, layers), streams)))
    return [kls[blocks] for blocks in children]


def _traced(library: Library, layer: int) -> torch.Tensor:
    return library.run.load_tensors(records.hidden("scoring", layer))["h"]


def _forward(library: Library, layer: int, block: Block, stream_STD: torch.Tensor) -> torch.Tensor:
    module = library.layer(layer, block)
    context = library.parent.context(stream_STD[:1], module.window)
    return torch.cat([module(batch, **context) for batch in stream_STD.split(BATCH_SEQUENCES)])


def _kls(
    head: nn.Module, parent_STD: torch.Tensor, streams: dict[Blocks, torch.Tensor]
) -> list[float]:
    """`sum p log p - sum p z + logsumexp z` of each child's logits z, p computed once."""
    totals = torch.zeros(len(streams), dtype=torch.float64)
    for sequence in range(len(parent_STD)):
        p_TV = head(parent_STD[sequence]).float().log_softmax(-1)
        share_TV = p_TV.exp()
        negentropy = (share_TV * p_TV).sum(-1)
        for child, stream_STD in enumerate(streams.values()):
            z_TV = head(stream_STD[sequence]).float()
            kl_T = negentropy - (share_TV * z_TV).sum(-1) + z_TV.logsumexp(-1)
            totals[child] += kl_T.mean().double()
    return (totals / len(parent_STD)).tolist()
