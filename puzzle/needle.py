"""Needles: is a number told early in a long text found again at its end?

Nothing is asked: the sentence that told the number begins again, and a model that looks back goes
on with the number, so models without instruction training can be checked too.

Legend: S texts, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from puzzle.errors import PuzzleError
from puzzle.progress import track

SENTENCE = "\nThe secret number is"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the text before the number is told
NUMBERS = 4  # told at every length and depth, one a text


@dataclass(frozen=True)
class Needle:
    """How often a number told at a depth of a text of so many tokens is found again."""

    length: int
    depth: float
    accuracy: float


@torch.no_grad()
def needles(
    model: PreTrainedModel, tokenizer: Any, haystack: torch.Tensor, lengths: Sequence[int]
) -> list[Needle]:
    """Accuracy by length and depth: every token of the number must be the likeliest.

    Args:
        haystack: token ids [T] of any text, repeated where it is short.

    Raises:
        PuzzleError: a length with no room for the sentence.
    """
    found = []
    for length in track(lengths, "needles"):
        for depth in DEPTHS:
            right = [
                _found_again(model, *hidden_number(tokenizer, haystack, length, depth, seed=seed))
                for seed in range(NUMBERS)
            ]
            found.append(Needle(length, depth, sum(right) / NUMBERS))
    return found


def hidden_number(
    tokenizer: Any, haystack: torch.Tensor, length: int, depth: float, *, seed: int
) -> tuple[torch.Tensor, int]:
    """A text [T] of `length` tokens that tells a number and ends with it; the number's tokens."""
    number = random.Random(seed).randrange(1000, 10_000)
    sentence, told, end = (
        torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (SENTENCE, f" {number}", ".\n")
    )
    room = length - 2 * len(sentence) - 2 * len(told) - len(end)
    if room < 0:
        raise PuzzleError(
            f"a text of {length} tokens has no room for a sentence told twice; ask for lengths of "
            f"{length - room} tokens or more"
        )
    text = haystack.repeat(-(-room // len(haystack)))[:room]
    before = round(depth * room)
    parts = [text[:before], sentence, told, end, text[before:], sentence, told]
    return torch.cat(parts), len(told)


def _found_again(model: PreTrainedModel, text: torch.Tensor, told: int) -> bool:
    """Whether the last `told` tokens of a text are each the likeliest after those before."""
    logits = model(text[None, :-1], use_cache=False, logits_to_keep=told).logits[0]
    return bool((logits.argmax(-1) == text[-told:]).all())
