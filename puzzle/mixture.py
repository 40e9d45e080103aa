"""Several corpora as one, by weights: books 70 %, web 30 %.

Every split takes from each source its share of the sequences, to the nearest one, and shuffles
them by the seed. A sequence is of one source, and a document of one split, as without mixing.

>>> parse(["books.txt=0.7", "web.jsonl=0.3"]), parse(["embedded"])
({'books.txt': 0.7, 'web.jsonl': 0.3}, {'embedded': 1.0})
>>> shares(10, {"books.txt": 2, "web.jsonl": 1})
{'books.txt': 7, 'web.jsonl': 3}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from puzzle import corpus
from puzzle.config import Config
from puzzle.device import shuffled
from puzzle.errors import PuzzleError

Mixture = Mapping[str, float]  # source -> weight; weights need not sum to 1


def parse(words: Iterable[str]) -> dict[str, float]:
    """Sources with their weights, `books.txt=0.7`; one without has 1.

    Raises:
        PuzzleError: a source named twice, a weight that is not above 0.
    """
    found: dict[str, float] = {}
    for word in words:
        source, weight = _parsed(word)
        if source in found:
            raise PuzzleError(f"--data names {source} twice; give each source one weight")
        if not 0 < weight < math.inf:
            raise PuzzleError(f"--data {word}: a weight is a number above 0, like {source}=0.7")
        found[source] = weight
    return found


def _parsed(word: str) -> tuple[str, float]:
    source, equals, weight = word.rpartition("=")
    try:
        return (source, float(weight)) if equals else (word, 1.0)
    except ValueError:
        return word, 1.0  # the name of the source itself has an equals sign


def shares(count: int, mixture: Mixture) -> dict[str, int]:
    """How many of `count` each source gives: proportional to its weight, largest remainders up."""
    whole = sum(mixture.values())
    exact = {source: count * weight / whole for source, weight in mixture.items()}
    found = {source: math.floor(part) for source, part in exact.items()}
    most = sorted(exact, key=lambda source: found[source] - exact[source])
    for source in most[: count - sum(found.values())]:
        found[source] += 1
    return found


def split_texts(config: Config, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Token ids [S, T] of a run's three disjoint splits."""
    return mixed(
        config.data,
        tokenizer,
        length=config.sequence_length,
        tokens=config.tokens.model_dump(),
        seed=config.seed,
    )


def healing_text(config: Config, tokenizer: Any, calibration_ST: torch.Tensor) -> torch.Tensor:
    """Token ids [S, T] of what a run heals on: its calibration split, or `heal.data`.

    Raises:
        PuzzleError: too little text, with what is asked for.
    """
    if config.heal.data is None:
        return calibration_ST
    return lesson(config, config.heal.data, tokenizer)["calibration"]


def lesson(
    config: Config, data: str | Mixture, tokenizer: Any, others: Mapping[str, int] | None = None
) -> dict[str, torch.Tensor]:
    """Token ids [S, T] of the split `calibration`, which healing reads, and of others by name."""
    wanted = config.heal.data_tokens or config.heal.tokens
    try:
        return mixed(
            data,
            tokenizer,
            length=config.sequence_length,
            tokens={"calibration": wanted, **(others or {})},
            seed=config.seed,
        )
    except PuzzleError as error:
        reason = str(error).partition(";")[0]  # what comes then is advice for a search
        raise PuzzleError(
            f"healing: {reason}; give more text, or read it several times with "
            "--set heal.data_tokens=... below that"
        ) from None


def mixed(
    data: str | Mixture,
    tokenizer: Any,
    *,
    length: int,
    tokens: Mapping[str, int],
    seed: int,
    at_most: bool = False,
) -> dict[str, torch.Tensor]:
    """Token ids [S, T] of each split that `tokens` names, of all sources.

    Of a single source they are `corpus.splits` of it, whatever its weight. `at_most` is of every
    source, as there.

    Raises:
        PuzzleError: a source with too little text for its share, or that cannot be read.
    """
    mixture = {data: 1.0} if isinstance(data, str) else data
    parts: dict[str, list[torch.Tensor]] = {split: [] for split in tokens}
    asked = {split: shares(max(1, count // length), mixture) for split, count in tokens.items()}
    for source in mixture:
        wanted = {split: asked[split][source] * length for split in tokens if asked[split][source]}
        try:
            found = corpus.splits(
                source, tokenizer, length=length, tokens=wanted, seed=seed, at_most=at_most
            )
        except PuzzleError as error:
            if len(mixture) == 1:
                raise
            reason = str(error).partition(";")[0]  # what comes then is advice for a single source
            raise PuzzleError(
                f"{source}: {reason}; give it more text or less weight, or ask for fewer tokens"
            ) from None
        for split, sequences in found.items():
            parts[split].append(sequences)
    return {split: _shuffled(sequences, seed) for split, sequences in parts.items()}


def _shuffled(parts: list[torch.Tensor], seed: int) -> torch.Tensor:
    """All parts in one random order; a single one as it is, for it is shuffled already."""
    if len(parts) == 1:
        return parts[0]
    whole = torch.cat(parts)
    return whole[shuffled(len(whole), torch.Generator().manual_seed(seed))]
