"""Lazy exact scores: after settling, every doubtful block of the choice has its exact score."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from puzzle import records
from puzzle import settle as module
from puzzle.blocks.variant import NOTHING
from puzzle.budget import load_budget
from puzzle.choose import choose
from puzzle.config import load_config
from puzzle.exact import exact
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.library import Library
from puzzle.menu import Menu
from puzzle.run import CONFIG
from puzzle.score import Score, Scores, scores
from puzzle.settle import Doubt, settle
from puzzle.space import layer_blocks
from puzzle.swap import Swap, removal, swaps


@pytest.fixture(scope="module")
def found(library: Library) -> Scores:
    config = load_config(library.run.folder / CONFIG)
    space = layer_blocks(library.parent.blocks, config.space, config.target)
    return scores(library.run, space)


@pytest.fixture(scope="module")
def menu(library: Library, found: Scores) -> Menu:
    shape, budget = library.parent.shape, load_budget("h100-1gpu")
    prices = price(shape, "llama", [list(layer) for layer in found.losses], budget)
    removals = {run: score.loss for run, score in found.removals.items()}
    return Menu(found.losses, prices, budget, reference_of(shape, budget), removals)


def test_a_run_costs_between_what_it_does_as_one_and_its_layers_one_by_one(
    library: Library, found: Scores
) -> None:
    assert found.removals
    whole = {tuple(row["run"]): row["loss"] for row in library.run.load(records.removals())}
    for stretch, score in found.removals.items():
        alone = sum(found.blocks[layer][NOTHING].loss for layer in range(*stretch))
        assert score.loss == pytest.approx((whole[stretch] * alone) ** 0.5)
        assert 0 < score.std_error < score.loss


def picked(library: Library, menu: Menu) -> list[Swap]:
    best = choose(menu)[0]
    return swaps(library.parent.blocks, best.blocks, best.removed)


def loss(menu: Menu, swap: Swap) -> float:
    if len(swap.blocks) > 1:
        return menu.removals[swap.run]
    return menu.losses[swap.layer][swap.blocks[0]]


def test_with_every_pick_in_doubt_the_choice_is_summed_of_exact_scores(
    library: Library, menu: Menu, found: Scores
) -> None:
    settled, known = settle(library, menu, found, "picked")
    chosen = picked(library, settled)
    scored = exact(library, chosen)
    assert set(chosen) <= known.keys()
    assert [loss(settled, swap) for swap in chosen] == [scored[s]["kl"]["mean"] for s in chosen]
    assert choose(settled)[0].loss == pytest.approx(sum(s["kl"]["mean"] for s in scored.values()))


def test_the_settled_choice_is_no_worse_in_exact_scores_than_the_first(
    library: Library, menu: Menu, found: Scores
) -> None:
    settled, _ = settle(library, menu, found, "picked")
    first, last = (
        sum(score["kl"]["mean"] for score in exact(library, picked(library, each)).values())
        for each in (menu, settled)
    )
    assert last <= first + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_where_hopes_are_not_beaten_the_settled_choice_is_the_best_of_all(
    library: Library, menu: Menu, found: Scores, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact scores are drawn from the hopeful one up to twice the score."""
    draw = random.Random(seed)
    alone = [
        Swap(layer, (block,))
        for layer, blocks in enumerate(menu.losses)
        for block in blocks
        if block != library.parent.blocks[layer]
    ]
    runs = [removal(*run) for run in menu.removals]
    truth = {swap: draw.uniform(module.HOPE, 2) * loss(menu, swap) for swap in (*alone, *runs)}

    def drawn(_: Library, wanted: list[Swap]) -> dict[Swap, dict[str, dict[str, float]]]:
        return {swap: {"kl": {"mean": truth[swap]}} for swap in wanted}

    monkeypatch.setattr(module, "exact", drawn)
    monkeypatch.setattr(module, "MOST", len(truth))
    settled, known = settle(library, menu, found, "picked")
    best = choose(menu.with_losses(truth))[0].loss
    assert choose(settled)[0].loss == pytest.approx(best)
    assert len(known) < len(truth)


def test_exact_scores_have_a_limit(
    library: Library, menu: Menu, found: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    _, known = settle(library, menu, found, "picked")
    layers = len(menu.losses)
    assert layers <= len(known) < 2 * layers


@pytest.mark.parametrize(("doubt", "expected"), [("never", 0), ("saturated", 1)])
def test_only_what_is_in_doubt_is_scored(
    library: Library,
    menu: Menu,
    found: Scores,
    doubt: Doubt,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One picked block is said to change the stream much; its exact score is made harmless."""
    target = next(swap for swap in picked(library, menu) if len(swap.blocks) == 1)
    asked: list[Swap] = []

    def fake(_: Library, wanted: list[Swap]) -> dict[Swap, dict[str, dict[str, float]]]:
        asked.extend(wanted)
        return {swap: {"kl": {"mean": 0.0}} for swap in wanted}

    monkeypatch.setattr(module, "exact", fake)
    calm = [{block: replace(s, change=0.0) for block, s in layer.items()} for layer in found.blocks]
    calm[target.layer][target.blocks[0]] = Score(1.0, 1.0, 0.0, change=9.0)
    runs = {run: replace(s, change=0.0) for run, s in found.removals.items()}
    settled, known = settle(library, menu, Scores(tuple(calm), runs), doubt)
    assert len(known) == expected
    assert asked == [target][:expected]
    assert loss(settled, target) == (0.0 if expected else loss(menu, target))
