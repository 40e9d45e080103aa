"""The arithmetic of `benchmarks/quality.py`: intervals, the summary, and the time of dense cuts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from puzzle.baselines.minitron.cut import Cut
from puzzle.blocks.variant import Block
from puzzle.parent import open_parent

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WHOLE = Cut(576, 9, 3, 1536, tuple(range(30)))


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import quality

    return quality


def row(method: str, kls: list[float], right: str = "10", **changes: Any) -> dict[str, Any]:
    """What the summary reads of a row."""
    return {
        "of": "time",
        "share": "0.75",
        "method": method,
        "taught": "own writing",
        "child": f"{method} at {kls}",
        "size_share": 0.75,
        "time_share": 0.75,
        "params_share": 0.8,
        "healed_tokens": 0,
        "seed": 0,
        "kl": sum(kls) / len(kls),
        "kls": kls,
        "right": right,
        **changes,
    }


def test_an_interval_covers_the_ratio_and_closes_where_nothing_varies(quality: ModuleType) -> None:
    others = np.random.default_rng(1).uniform(1, 2, 40)
    assert quality.interval(others / 2, others) == [0.5, 0.5]
    ours = others * np.random.default_rng(2).uniform(0.4, 0.8, 40)
    low, high = quality.interval(ours, others)
    assert low < ours.mean() / others.mean() < high
    shares = ours / others
    assert high - low == pytest.approx(4 * shares.std() / 40**0.5, rel=0.3)


def test_accuracies_are_compared_question_by_question(quality: ModuleType) -> None:
    assert quality.paired("1101", "1001") == (0.25, 0.25)
    assert quality.paired("1101", "1101") == (0, 0)


def test_the_summary_compares_with_the_nearest_of_other_peoples_methods(
    quality: ModuleType,
) -> None:
    rows = [
        row("puzzle", [1.0, 3.0], "11"),
        row("uniform", [2.0, 3.0]),
        row("puzzle, not mended", [3.0, 3.0]),
        row("uniform, not mended", [4.0, 8.0]),
        row("minitron", [8.0, 8.0], "01"),
        row("optipfair", [4.0, 4.0], time_share=0.7),
        row("torch-pruning", [2.0, 2.0], taught="embedded corpus"),
        row("greedy", [0.5, 0.5]),  # of our own library
        row("puzzle", [1.0, 1.0], healed_tokens=quality.HEAL.tokens),
        row("puzzle", [9.0, 9.0], of="parameters"),
    ]
    found = quality.summary(rows)
    assert found["kl_over_best_baseline"] == {"0.75": 0.5}
    assert found["best_baseline"] == {"0.75": "optipfair"}
    assert found["compared_with"] == {"0.75": ["minitron", "optipfair"]}
    assert found["measured_shares"] == {"0.75": [0.75, 0.7]}
    assert found["kl_over_uniform_mended"] == {"0.75": 0.8}
    assert found["kl_over_uniform_refit"] == {"0.75": 0.5}
    assert found["accuracy_minus_minitron"] == {"0.75": 0.5}
    assert "kl_over_best_baseline_healed" not in found  # nothing to compare with
    assert found["summary_parameters"] == {}


def test_methods_are_also_compared_at_the_size_that_ours_was_measured_to_have(
    quality: ModuleType,
) -> None:
    """Where log KL is a line in the size, the KL there is exact; one point says nothing."""

    def line(method: str, share: str, size: float, **changes: Any) -> dict[str, Any]:
        return row(method, [8 * 0.5 ** (10 * size)] * 2, share=share, time_share=size, **changes)

    rows = [
        row("puzzle", [0.02, 0.02], time_share=0.8),
        *(line("minitron", share, size) for share, size in (("0.75", 0.76), ("0.9", 0.92))),
        line("minitron", "0.5", 0.77, taught="embedded corpus"),
        line("minitron", "0.6", 0.79, healed_tokens=quality.HEAL.tokens),
        row("optipfair", [1e-3, 1e-3], time_share=0.7),
        *(line("uniform", share, size) for share, size in (("0.75", 0.6), ("0.9", 0.7))),
        row("puzzle, not mended", [0.04, 0.04], time_share=0.8),
        *(
            line("uniform, not mended", share, size)
            for share, size in (("0.75", 0.6), ("0.9", 0.7))
        ),
    ]
    found = quality.summary(rows)
    assert found["kl_over_best_baseline_at_equal_size"] == {"0.75": pytest.approx(0.64)}
    assert found["kl_over_uniform_mended_at_equal_size"] == {"0.75": pytest.approx(0.64)}
    assert found["kl_over_uniform_refit_at_equal_size"] == {"0.75": pytest.approx(1.28)}


def test_seeds_are_summed_up_each_on_its_own(quality: ModuleType) -> None:
    pairs = ((0, [1.0, 3.0]), (1, [2.0, 4.0]))
    rows = [row("puzzle", kls, seed=seed) for seed, kls in pairs]
    rows += [row("minitron", [4.0, 4.0], seed=seed) for seed, _ in pairs]
    rows += [row("uniform", [2.0, 2.0], seed=seed) for seed, _ in pairs]
    found = quality.summary(rows)
    assert found["kl_over_best_baseline"] == {"0.75": 0.5}
    assert found["kl_over_best_baseline_by_seed"] == {"0.75": [0.5, 0.75]}
    assert found["kl_over_uniform_mended_by_seed"] == {"0.75": [1.0, 1.5]}
    assert "kl_over_uniform_refit_by_seed" not in found


def test_the_times_that_children_were_chosen_by_are_compared_with_those_measured(
    quality: ModuleType,
) -> None:
    rows = [
        row("puzzle", [1.0], child="a", size_share=0.72),
        row("puzzle, not mended", [2.0], child="a", size_share=0.72),  # counts once
        row("uniform", [1.0], child="b", size_share=0.84),
        row("greedy", [1.0], child="c", size_share=0.75),
        row("minitron", [1.0], child="d", size_share=3.0),  # by other prices
        row("random", [1.0], child="e", of="parameters", size_share=3.0),
    ]
    assert quality.summary(rows)["time_error_median"] == pytest.approx(0.04)


def test_a_row_says_what_to_time(quality: ModuleType) -> None:
    sized, parent = sys.modules["quality_times"].Sized, open_parent("embedded")
    cut = replace(Cut.whole(parent.shape), intermediate_size=256, layers=(0, 1, 5, 7))
    found = sized.described(f"depth: {cut}", parent)
    assert found.blocks == sized.dense(cut, parent).blocks == (Block.parse("gqa4+ffn256"),) * 4
    assert found.config.intermediate_size == 256
    text = " ".join(["gqa2+noop"] * parent.shape.layers)
    assert set(sized.described(text, parent).blocks) == {Block.parse("gqa2+noop")}


def test_a_child_is_timed_beside_its_parent(quality: ModuleType) -> None:
    module, parent = sys.modules["quality_times"], open_parent("embedded")
    alike = module.paired_speed(module.Sized(parent.config, parent.blocks), parent)
    assert alike["time_share"] == pytest.approx(1, abs=0.15)
    few = replace(Cut.whole(parent.shape), layers=(0, 7))
    found = module.paired_speed(module.Sized.dense(few, parent), parent)
    assert found["time_share"] < 0.6
    assert found["tokens_per_s"] > alike["tokens_per_s"]


def test_the_time_of_dense_cuts_is_found_again(quality: ModuleType) -> None:
    dense = sys.modules["quality_times"].DenseTime
    cuts = sys.modules["quality_times"].probes(WHOLE)
    known = dense(WHOLE, np.array([0.2, 0.3, 0.5]), 0.0)
    fitted = dense.fitted(WHOLE, cuts, [known.share(cut) for cut in cuts])
    assert fitted.weights == pytest.approx(known.weights)
    assert fitted.error < 1e-9
    half = replace(WHOLE, layers=WHOLE.layers[:15])
    assert fitted.share(half) == pytest.approx(0.2 + 0.3 / 2 + 0.5 / 2)
