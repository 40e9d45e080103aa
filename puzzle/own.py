"""Make a user-defined variant known to every part of Puzzle."""

from __future__ import annotations

from puzzle.blocks import own
from puzzle.blocks.own import OwnVariant
from puzzle.blocks.variant import ATTENTIONS, FFNS
from puzzle.errors import PuzzleError
from puzzle.export import modeling_puzzle


def add_variant(kind: type[OwnVariant]) -> None:
    """Let spaces name this variant, and models hold it; again is harmless.

    Raises:
        PuzzleError: the class does not say all it must, or its examples are another's.
    """
    try:
        own.check(kind)
    except ValueError as error:
        raise PuzzleError(str(error)) from None
    kinds = ATTENTIONS if kind.half == "attention" else FFNS
    for name, other in kinds.items():
        if name != kind.__name__ and any(map(other.read, kind.examples)):
            raise PuzzleError(
                f"variant {kind.__name__} is written {kind.examples[0]}, as {other.__name__} is; "
                "choose another pattern"
            )
    kinds[kind.__name__] = kind
    modeling_puzzle.OWN[kind.__name__] = lambda config, fields: kind(**fields).module(config)
