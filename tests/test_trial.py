"""Finalists are measured, and the one that measures best is the child."""

from __future__ import annotations

import pytest

from puzzle.library import Library
from puzzle.measure import measure
from puzzle.result import Result
from puzzle.trial import trial


def test_the_search_takes_the_finalist_that_measures_best(result: Result, library: Library) -> None:
    finalists = result.finalists
    assert len(finalists) > 4
    assert finalists["measured_kl"].is_monotonic_increasing
    chosen = " ".join(map(str, result.architecture.blocks))
    assert finalists["blocks"][0] == chosen
    [(_, best)] = measure(library, [result.architecture.blocks])
    assert float(best["kl"].mean()) == pytest.approx(finalists["measured_kl"][0], rel=1e-5)
    assert result.models["uniform"]["measured_kl"] > 0


def test_no_finalist_gives_none(library: Library) -> None:
    assert trial(library, []) == []
