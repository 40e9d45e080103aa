"""Windows: as much of the calibration text as may have its streams on disk at a time.

Streams are large: hidden size x bytes for every token, at every layer. Without a ceiling there is
one window; under one, each window is traced, taught from, and deleted. The streams of the last
stay, for mending the child and for a later search. A window comes in parts, so that ranks that own
different layers can work on different parts at the same time.

Legend: S sequences, T tokens of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from puzzle.config import Config
from puzzle.corpus import digest
from puzzle.errors import PuzzleError
from puzzle.parent import Parent
from puzzle.run import fingerprint
from puzzle.shape import Shape
from puzzle.units import show

PART_TOKENS = 16_384
STREAMS = 6  # of a window in memory while a layer is taught: three, and room to join parts
SHARE = 0.25  # of the memory is for streams
PROCESS_BYTES = 640 * 2**20  # of a process that has only imported what it needs


@dataclass(frozen=True)
class Window:
    """Number `index` of `count`: the token ids [S, T] of its parts, by the name of their streams.

    `inputs` is the fingerprint of all that its windows teach and judge by, `room_bytes` what
    training may take.
    """

    index: int
    count: int
    parts: dict[str, torch.Tensor]
    inputs: str
    room_bytes: float = math.inf

    @property
    def last(self) -> bool:
        """Whether no other follows; its streams stay, for mending and for another search."""
        return self.index == self.count - 1

    def share(self, steps: int) -> range:
        """Which of all training steps are this window's."""
        return range(steps * self.index // self.count, steps * (self.index + 1) // self.count)


def windows(
    texts: dict[str, torch.Tensor], parent: Parent, config: Config, traced: str
) -> list[Window]:
    """Cut the calibration text into equal windows that keep the ceilings.

    Args:
        texts: token ids [S, T] of the splits `calibration` and `scoring`.
        traced: fingerprint of the scoring split's trace, which stays beside every window's.

    Raises:
        PuzzleError: not even one sequence fits.
    """
    tokens = texts["calibration"]
    ceilings = config.ceiling.disk, config.ceiling.memory
    disk, memory = (ceiling.value if ceiling else math.inf for ceiling in ceilings)
    layers, token = parent.shape.layers, parent.shape.hidden_size * parent.dtype.itemsize
    swept = 1 if config.choose.rounds == 1 else 2  # the parent, and a child that is looked around
    streams = swept * (layers + 1) + config.score.samples * layers
    kept = texts["scoring"].numel() * token * streams
    sequence = tokens.shape[1] * token
    fits = min(
        len(tokens),
        _fitting("disk", disk - kept, sequence * (layers + 1)),
        _fitting("memory", memory * SHARE, sequence * STREAMS),
    )
    count = math.ceil(len(tokens) / fits)
    inputs = fingerprint(traced, digest(tokens), count)
    size = max(1, PART_TOKENS // tokens.shape[1])
    batch_tokens = config.distill.batch(tokens.shape[1]) * tokens.shape[1]
    room_bytes = max(0.0, memory * (1 - SHARE) - _taken(parent.shape, batch_tokens))

    def window(index: int, sequences: torch.Tensor) -> Window:
        name = f"calibration/w{index:03}.p"
        parts = {f"{name}{part:03}": ids for part, ids in enumerate(sequences.split(size))}
        return Window(index, count, parts, inputs, room_bytes)

    return [window(index, part) for index, part in enumerate(tokens.tensor_split(count))]


def _taken(shape: Shape, batch_tokens: int) -> float:
    """Memory beside streams and training: the process, a layer, its equations, activations."""
    halves = (half for block in shape.blocks for half in (block.attention, block.ffn))
    widest = max(matrix.size_in for half in halves for matrix in half.matrices(shape))
    layer = 4 * max(map(shape.block_params, shape.blocks))
    equations, activations = 8 * widest**2, 4 * batch_tokens * widest
    return PROCESS_BYTES + 2 * layer + 2 * equations + 8 * activations


def _fitting(what: str, room: float, each: int) -> float:
    """How many sequences there is room for."""
    if room < each:
        raise PuzzleError(
            f"ceiling.{what} leaves {show(max(room, 0), 'B')} for streams, where those of one "
            f"sequence take {show(each, 'B')}; raise it, or lower sequence_length, tokens.scoring "
            "or score.samples"
        )
    return room // each if room < math.inf else room
