"""Finalists are measured, and the one that measures best is the child."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from puzzle import trial as module
from puzzle.blocks.variant import Block
from puzzle.library import Library
from puzzle.measure import kl, measure
from puzzle.menu import Choice
from puzzle.result import Result
from puzzle.swap import Blocks
from puzzle.trial import HEATS, trial


def test_the_search_takes_the_finalist_that_measures_best(result: Result, library: Library) -> None:
    finalists = result.finalists
    assert len(finalists) > 4
    assert finalists["measured_kl"].is_monotonic_increasing
    chosen = " ".join(map(str, result.architecture.blocks))
    assert finalists["blocks"][0] == chosen
    [(_, best)] = measure(library, [result.architecture.blocks])
    assert float(best["kl"].mean()) == pytest.approx(finalists["measured_kl"][0], rel=1e-4)
    assert result.models["uniform"]["measured_kl"] > 0


def test_no_finalist_gives_none(library: Library) -> None:
    assert trial(library, []) == []


@pytest.fixture
def finalists(result: Result, library: Library) -> list[Choice]:
    """All children with one of four blocks in each layer, the parent among them."""
    own, menu = library.parent.blocks, ("gqa1+ffn256", "noop+ffn512", "noop+noop")
    options = [[block, *map(Block.parse, menu)] for block in own]
    prediction = Choice.from_record(result.models["child"]).prediction
    return [Choice(blocks, 0.0, prediction, {}, {}) for blocks in product(*options)]


def test_half_of_the_finalists_go_on_after_every_heat(
    finalists: list[Choice], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner is the best of all in full, and runs by far are not what all in full would be."""
    full = dict(measure(library, [each.blocks for each in finalists], {"kl": kl}))
    sequences = len(full[finalists[0].blocks]["kl"])
    runs: list[tuple[int, int]] = []

    def spy(library: Library, children: list[Blocks], *args: object, part: slice) -> object:
        runs.append((len(children), part.stop - part.start))
        return measure(library, children, *args, part=part)

    monkeypatch.setattr(module, "measure", spy)
    found = trial(library, finalists)
    assert found[0].blocks == library.parent.blocks
    count = len(finalists)
    assert [children for children, _ in runs] == [count, math.ceil(count / 2), math.ceil(count / 4)]
    assert sum(part for _, part in runs) == sequences
    assert found[0].measured_kl == pytest.approx(0, abs=1e-6)


def test_what_fell_out_has_what_it_had_and_what_the_winner_has_more(
    finalists: list[Choice], library: Library
) -> None:
    tried = [each for each in finalists if each.blocks != library.parent.blocks]
    full = dict(measure(library, [each.blocks for each in tried], {"kl": kl}))
    found = trial(library, tried)
    best = full[found[0].blocks]["kl"]
    ends = [math.ceil(share * len(best)) for share in HEATS]
    seen = set()
    for choice in found:
        own = full[choice.blocks]["kl"]
        estimates = torch.stack(
            [own[:end].mean() + best.mean() - best[:end].mean() for end in ends]
        )
        gaps = (estimates - choice.measured_kl).abs()
        assert gaps.min() < 1e-5
        seen.add(int(gaps.argmin()))
        assert choice.measured_kl >= found[0].measured_kl
    assert seen == {0, 1, 2}
