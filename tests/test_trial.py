"""Finalists carried up together are measured as if each were assembled and run alone."""

from __future__ import annotations

import pytest
import torch

from puzzle import records
from puzzle.assemble import assemble
from puzzle.blocks.variant import Block
from puzzle.library import Library
from puzzle.parent import open_parent
from puzzle.result import Result
from puzzle.trial import measure, trial


@pytest.fixture(scope="module")
def library(result: Result) -> Library:
    return Library(result.run, open_parent(result.architecture.parent))


def children(library: Library) -> list[tuple[Block, ...]]:
    """Three children, two of which begin alike; the parent; and one child twice."""
    narrow, short = Block.parse("gqa1+ffn256"), Block.parse("noop+ffn512")
    own = library.parent.blocks
    return [
        (narrow, short, own[2]),
        (narrow, short, narrow),
        (own[0], narrow, short),
        own,
        (narrow, short, narrow),
    ]


def alone(library: Library, blocks: tuple[Block, ...]) -> float:
    """The KL of an assembled child from the embedded stream up, with the model run whole."""
    enter = library.run.load_tensors(records.hidden("scoring", 0))["h"]
    with torch.no_grad():
        p, c = (
            assemble(library, each)(inputs_embeds=enter, use_cache=False).logits.log_softmax(-1)
            for each in (library.parent.blocks, blocks)
        )
    return float((p.exp() * (p - c)).sum(-1).mean())


def test_each_child_is_measured_as_if_run_alone(library: Library) -> None:
    tried = children(library)
    kls = measure(library, tried)
    assert kls == pytest.approx([alone(library, blocks) for blocks in tried], rel=1e-3, abs=1e-6)
    assert kls[3] == pytest.approx(0, abs=1e-6)
    assert kls[1] == kls[4]
    assert len(set(kls)) == 4


def test_the_search_takes_the_finalist_that_measures_best(result: Result, library: Library) -> None:
    finalists = result.finalists
    assert len(finalists) > 4
    assert finalists["measured_kl"].is_monotonic_increasing
    chosen = " ".join(map(str, result.architecture.blocks))
    assert finalists["blocks"][0] == chosen
    best = measure(library, [result.architecture.blocks])[0]
    assert best == pytest.approx(finalists["measured_kl"][0], rel=1e-5)
    assert result.models["uniform"]["measured_kl"] > 0


def test_no_finalist_gives_none(library: Library) -> None:
    assert trial(library, []) == []
