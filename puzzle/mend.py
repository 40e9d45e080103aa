"""Mend: the last matrices of a child, refit one after another on the child's own stream.

Blocks of the library are made on the parent's stream, but inside a child they see the errors of all
blocks below. So the child is swept up once: in every half, those kept from the parent included, the
last matrix is solved by weighted ridge least squares from what the child's stream feeds it to where
the parent's stream goes. Each half so makes good what it can of the errors below it. A solution is
kept where it brings the stream nearer to the parent's on held-out sequences.

Legend: S sequences, T tokens, N tokens of a batch, D hidden, F features of a last matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from puzzle import records
from puzzle.blocks.refit import NormalEquations, Tokens, token_weights
from puzzle.blocks.variant import Block
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.lesson import BATCH_SEQUENCES, LAST_MATRICES
from puzzle.library import Library
from puzzle.modules import Weights, build_layer
from puzzle.progress import track

HELD_OUT = 8  # one sequence in eight judges

Half = Callable[[torch.Tensor], torch.Tensor]  # a stream [S, T, D] to the stream after it


@dataclass(frozen=True)
class Aim:
    """Where a half takes up the child's stream, where the parent's goes [S, T, D], and weights."""

    enter: torch.Tensor
    leave: torch.Tensor
    weight: torch.Tensor  # [S, T]

    def __getitem__(self, which: slice) -> Aim:
        return Aim(self.enter[which], self.leave[which], self.weight[which])

    def split(self) -> tuple[Aim, Aim]:
        """The sequences that teach, and those that judge: the last eighth, one at least."""
        judges = max(1, len(self.enter) // HELD_OUT)
        return self[:-judges], self[-judges:]

    def batches(self) -> Iterator[Aim]:
        """The sequences in order, a few at a time."""
        for start in range(0, len(self.enter), BATCH_SEQUENCES):
            yield self[start : start + BATCH_SEQUENCES]

    def error(self, half: Half) -> float:
        """Weighted squared distance from where the half comes out to where it should."""
        miss = (half(self.enter) - self.leave).float().square().sum(dim=-1)
        return float((miss * self.weight).sum())


def mend(
    library: Library, blocks: Sequence[Block], splits: Sequence[str], *, name: str, inputs: str
) -> Weights:
    """The mended child's tensors by checkpoint name; a record a layer, from `name` on.

    Args:
        splits: the traced parts of the calibration text to mend by.
        inputs: fingerprint of the library and the blocks.
    """
    run, parent = library.run, library.parent
    places = [records.layer_of(name, layer) for layer in range(len(blocks))]
    finished = all(run.fresh(place, inputs) for place in places)
    stream = _parent_stream(library, splits, 0)
    weights = parent.outside_weights()
    for layer, (block, place) in enumerate(zip(track(blocks, "mend"), places)):
        if not run.fresh(place, inputs):
            run.save_tensors(place, mend_layer(library, layer, block, splits, stream), inputs)
        tensors = run.load_tensors(place)
        weights |= {f"model.layers.{layer}.{key}": tensor for key, tensor in tensors.items()}
        if not finished:
            stream = _through(library, build_layer(parent.config, block, tensors), stream)
    return weights


@torch.no_grad()
def mend_layer(
    library: Library, layer: int, block: Block, splits: Sequence[str], enter_STD: torch.Tensor
) -> Weights:
    """One layer's tensors, its last matrices refit where `enter_STD` is the child's own stream."""
    child, parent = library.layer(layer, block), library.parent.layer(layer)
    leave = _parent_stream(library, splits, layer + 1)
    aim = Aim(enter_STD, leave, token_weights(leave))
    attend, feed = partial(_attended, library, child), partial(_fed, child)
    if child.self_attn is not None:
        middle = _attended(library, parent, _parent_stream(library, splits, layer))
        halfway = replace(aim, leave=middle) if child.mlp is not None else aim
        refit(child.self_attn, attend, halfway)
    if child.mlp is not None:
        refit(child.mlp, feed, replace(aim, enter=attend(enter_STD)))
    return child.state_dict()


def refit(module: nn.Module, half: Half, aim: Aim) -> None:
    """Solve the last matrix of a half's module, in place; as it was where that is not better."""
    matrix = _last_matrix(module)
    if matrix is None:
        return
    teach, judge = aim.split()
    start, before = matrix.weight, judge.error(half)
    matrix.weight = nn.Parameter(_solved(matrix, half, teach), requires_grad=False)
    if not judge.error(half) < before:
        matrix.weight = start


def _solved(matrix: nn.Linear, half: Half, aim: Aim) -> torch.Tensor:
    """The matrix [D, F] that takes the stream nearest to the aim, shrunk towards what it is."""
    weight_FD = matrix.weight.float().T
    seen: list[torch.Tensor] = []

    def tokens() -> Iterator[Tokens]:
        for part in aim.batches():
            missing_ND = (part.leave - half(part.enter)).float().flatten(0, 1)
            x_NF = seen.pop().float().flatten(0, 1)
            yield x_NF, x_NF @ weight_FD + missing_ND, part.weight.flatten()

    handle = matrix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return NormalEquations.of(tokens(), *weight_FD.shape).solve(matrix.weight)
    finally:
        handle.remove()


def _last_matrix(module: nn.Module) -> nn.Linear | None:
    """The linear map a half ends with; None for a half that ends otherwise."""
    names = {name.partition(".")[2] for name in LAST_MATRICES}
    for name, child in module.named_children():
        if name in names and isinstance(child, nn.Linear):
            return child
    return None


def _parent_stream(library: Library, splits: Sequence[str], layer: int) -> torch.Tensor:
    names = [records.hidden(split, layer) for split in splits]
    return torch.cat([library.run.load_tensors(name)["h"] for name in names])


def _attended(library: Library, module: PuzzleLayer, stream_STD: torch.Tensor) -> torch.Tensor:
    context = library.parent.context(stream_STD[:1], module.window)
    batches = stream_STD.split(BATCH_SEQUENCES)
    return torch.cat([module.attend(batch, **context) for batch in batches])


def _fed(module: PuzzleLayer, stream_STD: torch.Tensor) -> torch.Tensor:
    return torch.cat([module.feed(batch) for batch in stream_STD.split(BATCH_SEQUENCES)])


@torch.no_grad()
def _through(library: Library, module: PuzzleLayer, stream_STD: torch.Tensor) -> torch.Tensor:
    return _fed(module, _attended(library, module, stream_STD))
