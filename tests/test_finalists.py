"""Finalists: children at several weights of FFN losses, the nearest to the parent first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from puzzle import finalists as module
from puzzle.blocks.variant import NOTHING, Block
from puzzle.budget import load_budget
from puzzle.choose import choose
from puzzle.config import load_config
from puzzle.finalists import WEIGHTS, finalists, weighed
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.library import Library
from puzzle.measure import measure
from puzzle.menu import Choice, Menu
from puzzle.run import CONFIG
from puzzle.score import scores
from puzzle.space import layer_blocks
from puzzle.swap import Blocks


@pytest.fixture(scope="module")
def menu(library: Library) -> Menu:
    config, parent = load_config(library.run.folder / CONFIG), library.parent
    found = scores(library.run, layer_blocks(parent.blocks, config.space, config.target))
    budget, space = load_budget("h100-1gpu"), [list(layer) for layer in found.losses]
    prices = price(parent.shape, "llama", space, budget)
    removals = {layers: score.loss for layers, score in found.removals.items()}
    return Menu(found.losses, prices, budget, reference_of(parent.shape, budget), removals)


def test_ffn_losses_are_weighed_and_attention_losses_are_not(menu: Menu, library: Library) -> None:
    own = library.parent.blocks
    assert weighed(menu, own, 1.0).losses == [dict(layer) for layer in menu.losses]
    half = weighed(menu, own, 0.5)
    for before, after, kept in zip(menu.losses, half.losses, own):
        for block, loss in before.items():
            alone = before[Block(kept.attention, block.ffn)]
            expected = (
                loss / 2 if block.attention == kept.attention else loss - min(loss, alone) / 2
            )
            assert after[block] == pytest.approx(expected)


def test_a_removed_run_weighs_what_its_layers_do(menu: Menu, library: Library) -> None:
    assert menu.removals
    double = weighed(menu, library.parent.blocks, 2.0)
    for run, loss in menu.removals.items():
        before = sum(menu.losses[layer][NOTHING] for layer in range(*run))
        after = sum(double.losses[layer][NOTHING] for layer in range(*run))
        assert double.removals[run] / loss == pytest.approx(after / before)
        assert 1 < after / before <= 2


def test_one_finalist_trusts_the_scores(menu: Menu, library: Library) -> None:
    [found] = finalists(library, menu, 1)
    [best] = choose(menu)
    assert (found.blocks, found.loss) == (best.blocks, pytest.approx(best.loss))


def test_finalists_are_measured_and_keep_their_sum_of_scores(menu: Menu, library: Library) -> None:
    found = finalists(library, menu, 9)
    assert len({choice.blocks for choice in found}) == len(found) <= 9
    kls = [choice.measured_kl for choice in found]
    assert kls == sorted(kls, key=lambda kl: kl or 0.0)
    [(_, best)] = measure(library, [found[0].blocks])
    assert float(best["kl"].mean()) == pytest.approx(kls[0], rel=1e-4)
    assert choose(menu)[0].blocks in {choice.blocks for choice in found}
    for choice in found:
        again = menu.choice(choice.blocks, choice.prediction.batch, {}, choice.removed)
        assert choice.loss == pytest.approx(again.loss)
        assert menu.limits.allow(choice.prediction)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_best_child_is_found_whatever_ffns_cost_together(
    menu: Menu, library: Library, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where KL is a weighed sum, the best of all within the budget is among the measured."""
    own = library.parent.blocks
    truth = weighed(menu, own, weight)

    def kl(blocks: Blocks, removed: Sequence[tuple[int, int]]) -> float:
        return truth.choice(blocks, 64, {}, removed).loss

    def trial(_: Library, choices: Sequence[Choice]) -> list[Choice]:
        known = [replace(each, measured_kl=kl(each.blocks, each.removed)) for each in choices]
        return sorted(known, key=lambda choice: choice.measured_kl or 0.0)

    monkeypatch.setattr(module, "trial", trial)
    found = finalists(library, menu, len(WEIGHTS))
    assert found[0].measured_kl == pytest.approx(choose(truth)[0].loss)
