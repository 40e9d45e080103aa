"""Exact scores: the KL of the parent with one place changed, recorded and never computed again."""

from __future__ import annotations

import pytest

from puzzle.blocks.variant import Block
from puzzle.exact import exact
from puzzle.library import Library
from puzzle.measure import measure
from puzzle.spread import std_error
from puzzle.swap import Swap, removal

SWAPS = [
    Swap(1, (Block.parse("gqa1+ffn256"),)),
    removal(1, 3),
    Swap(0, (Block.parse("gqa2+ffn512"),)),
]


def test_an_exact_score_is_the_measured_kl_of_the_child_it_names(library: Library) -> None:
    found = exact(library, SWAPS)
    own = library.parent.blocks
    nothing = Block.parse("noop+noop")
    children = {
        SWAPS[0]: (own[0], *SWAPS[0].blocks, own[2]),
        SWAPS[1]: (own[0], nothing, nothing),
        SWAPS[2]: (*SWAPS[2].blocks, own[1], own[2]),
    }
    measured = dict(measure(library, list(children.values())))
    for swap, child in children.items():
        assert swap.child(own) == child
        kl = measured[child]["kl"]
        assert found[swap]["kl"]["mean"] == pytest.approx(float(kl.mean()))
        assert found[swap]["kl"]["std_error"] == pytest.approx(std_error(kl))
        assert found[swap].keys() == {"kl", "lm_loss", "agreement"}


def test_what_is_recorded_is_not_measured_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exact(library, SWAPS)
    monkeypatch.setattr("puzzle.exact.measure", lambda *_: pytest.fail("measured again"))
    assert exact(library, SWAPS) == found


def test_a_score_of_another_library_is_stale(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact(library, SWAPS)
    asked = []
    monkeypatch.setattr("puzzle.exact.measure", lambda _, children: asked.extend(children) or [])
    of = library.run.fingerprint_of
    monkeypatch.setattr(
        library.run,
        "fingerprint_of",
        lambda name: "another" if name == "library/L01.attention=gqa1" else of(name),
    )
    exact(library, SWAPS)
    assert asked == [SWAPS[0].child(library.parent.blocks)]
