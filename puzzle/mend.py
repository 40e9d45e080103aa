"""Mend: the layers of a child, refit and distilled one after another on the child's own stream.

Blocks of the library are made on the parent's stream, but inside a child they see the errors of all
blocks below. So the child is swept up once. In every half, those kept from the parent included, the
last matrix is solved by weighted ridge least squares from what the child's stream feeds it to where
the parent's stream goes; then the whole layer is trained towards that. Each layer so makes good
what it can of the errors below it. The calibration text teaches; the scoring text, which may be of
another kind, judges: of solutions that are shrunk more or less towards the matrix as it was, and
that matrix, the one is kept whose stream is nearest to the parent's there, and so is the trained
layer or the refit one.

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
from puzzle.blocks.variant import NOTHING, Block
from puzzle.config import Mend
from puzzle.device import at_once
from puzzle.export.modeling_puzzle import PuzzleLayer
from puzzle.lesson import BATCH_SEQUENCES, LAST_MATRICES
from puzzle.library import Library
from puzzle.modules import Weights, build_layer
from puzzle.progress import track
from puzzle.study import Study, batches

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # how much a solution is shrunk, of the mean feature energy
JUDGE = "scoring"  # the split that judges

Half = Callable[[torch.Tensor], torch.Tensor]  # a stream [S, T, D] to the stream after it


@dataclass(frozen=True)
class Aim:
    """Where a half takes up the child's stream, where the parent's goes [S, T, D], and weights."""

    enter: torch.Tensor
    leave: torch.Tensor
    weight: torch.Tensor  # [S, T]

    def __getitem__(self, which: slice | torch.Tensor) -> Aim:
        return Aim(self.enter[which], self.leave[which], self.weight[which])

    def batches(self) -> Iterator[Aim]:
        """The sequences in order, a few at a time."""
        size = at_once(BATCH_SEQUENCES)
        for start in range(0, len(self.enter), size):
            yield self[start : start + size]

    def error(self, stream_STD: torch.Tensor) -> torch.Tensor:
        """Weighted squared distance of a stream from where it should go."""
        miss_ST = (stream_STD - self.leave).float().square().sum(dim=-1)
        return (miss_ST * self.weight).sum()


@torch.no_grad()
def mend(
    library: Library,
    blocks: Sequence[Block],
    splits: Sequence[str],
    options: Mend,
    *,
    name: str,
    inputs: str,
) -> Weights:
    """The mended child's tensors by checkpoint name; a record a layer, from `name` on.

    Args:
        splits: the traced parts of the calibration text that teach.
        inputs: fingerprint of the library, the blocks and the options.
    """
    run, parent = library.run, library.parent
    places = [records.layer_of(name, layer) for layer in range(len(blocks))]
    finished = all(run.fresh(place, inputs) for place in places)
    splits = [*splits, JUDGE]
    stream = _parent_stream(library, splits, 0)
    weights = parent.outside_weights()
    for layer, (block, place) in enumerate(zip(track(blocks, "mend"), places)):
        if not run.fresh(place, inputs):
            child, stream = mend_layer(library, layer, block, splits, stream, options)
            run.save_tensors(place, child.state_dict(), inputs)
        elif not finished:
            child = build_layer(parent.config, block, run.load_tensors(place))
            stream = _through(library, child, stream)
        tensors = run.load_tensors(place)
        weights |= {f"model.layers.{layer}.{key}": tensor for key, tensor in tensors.items()}
    return weights


def mend_layer(
    library: Library,
    layer: int,
    block: Block,
    splits: Sequence[str],
    enter_STD: torch.Tensor,
    options: Mend,
) -> tuple[PuzzleLayer, torch.Tensor]:
    """One layer, refit and trained where `enter_STD` is the child's own stream.

    Returns it, and the child's stream after it.

    Args:
        splits: what the stream is of; the last one judges.
    """
    child, parent = library.layer(layer, block), library.parent.layer(layer)
    leave = _parent_stream(library, splits, layer + 1)
    aim = Aim(enter_STD, leave, token_weights(leave))
    judges = len(_parent_stream(library, splits[-1:], layer))
    attend, feed = partial(_attended, library, child), partial(_fed, child)
    if child.self_attn is not None:
        middle = _attended(library, parent, _parent_stream(library, splits, layer))
        halfway = replace(aim, leave=middle) if child.mlp is not None else aim
        refit(child.self_attn, attend, halfway, judges)
    middle = attend(enter_STD)
    if child.mlp is not None:
        refit(child.mlp, feed, replace(aim, enter=middle), judges)
    reached = feed(middle)
    if options.tokens and block != NOTHING:
        trained = train(library, block, child.state_dict(), aim[:-judges], options)
        nearer = _through(library, trained, enter_STD)
        judge = aim[-judges:]
        if judge.error(nearer[-judges:]) < judge.error(reached[-judges:]):
            return trained, nearer
    return child, reached


@torch.enable_grad()
def train(library: Library, block: Block, weights: Weights, aim: Aim, options: Mend) -> PuzzleLayer:
    """The layer of these weights, trained to take the child's stream where the parent's goes."""
    parent = library.parent
    built = partial(build_layer, parent.config, block)
    sequences, length = aim.weight.shape
    steps = options.steps(length)
    study = Study(built, weights, options, parent.dtype, steps)
    context = parent.context(aim.enter[:1], study.module.window)

    def loss(part: Aim, layer: PuzzleLayer) -> torch.Tensor:
        return part.error(layer(part.enter, **context)) / part.weight.sum()

    for step, which in zip(range(steps), batches(sequences, options.batch(length))):
        study.learn(partial(loss, aim[which]), step)
    return built(study.weights(parent.dtype))


def refit(module: nn.Module, half: Half, aim: Aim, judges: int) -> None:
    """Solve the last matrix of a half's module, in place; as it was where that is not better.

    Args:
        judges: how many of the last sequences judge; the others teach.
    """
    matrix = _last_matrix(module)
    if matrix is None:
        return
    teach, judge = (_missing(matrix, half, part) for part in (aim[:-judges], aim[-judges:]))
    weight = matrix.weight.float()
    nothing = torch.zeros_like(weight)
    changes = [nothing, *(teach.solve(nothing, ridge) for ridge in RIDGES)]
    changed = (weight + min(changes, key=judge.excess)).to(matrix.weight.dtype)
    matrix.weight = nn.Parameter(changed, requires_grad=False)


def _missing(matrix: nn.Linear, half: Half, aim: Aim) -> NormalEquations:
    """Whose solution is the change of the matrix [D, F] that takes the stream to the aim."""
    seen: list[torch.Tensor] = []

    def tokens() -> Iterator[Tokens]:
        for part in aim.batches():
            missing_ND = (part.leave - half(part.enter)).float().flatten(0, 1)
            yield seen.pop().float().flatten(0, 1), missing_ND, part.weight.flatten()

    handle = matrix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return NormalEquations.of(tokens(), matrix.in_features, matrix.out_features)
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
    batches = stream_STD.split(at_once(BATCH_SEQUENCES))
    return torch.cat([module.attend(batch, **context) for batch in batches])


def _fed(module: PuzzleLayer, stream_STD: torch.Tensor) -> torch.Tensor:
    batches = stream_STD.split(at_once(BATCH_SEQUENCES))
    return torch.cat([module.feed(batch) for batch in batches])


def _through(library: Library, module: PuzzleLayer, stream_STD: torch.Tensor) -> torch.Tensor:
    return _fed(module, _attended(library, module, stream_STD))
