"""Rounds: each center is measured nearer to the parent than the one before, within the budget."""

from __future__ import annotations

import pytest

from puzzle.budget import load_budget
from puzzle.config import load_config
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.library import Library
from puzzle.measure import measure
from puzzle.menu import Choice, Menu
from puzzle.rounds import further
from puzzle.run import CONFIG
from puzzle.score import scores
from puzzle.space import layer_blocks
from puzzle.trial import trial


@pytest.fixture(scope="module")
def menu(library: Library) -> Menu:
    config = load_config(library.run.folder / CONFIG)
    losses = scores(
        library.run, layer_blocks(library.parent.blocks, config.space, config.target)
    ).losses
    shape, budget = library.parent.shape, load_budget("h100-1gpu")
    prices = price(shape, "llama", [list(layer) for layer in losses], budget)
    return Menu(losses, prices, budget, reference_of(shape, budget))


@pytest.fixture(scope="module")
def poor(library: Library, menu: Menu) -> Choice:
    """The smallest block in every layer: within the budget, and far from the parent."""
    prices = menu.prices.blocks[64]
    smallest = [min(layer, key=lambda block: prices[block].total_s) for layer in menu.losses]
    [choice] = trial(library, [menu.choice(smallest, 64, {"status": "none"})])
    return choice


def test_every_round_ends_nearer_to_the_parent_and_keeps_the_budget(
    library: Library, menu: Menu, poor: Choice
) -> None:
    centers = [poor, *further(library, menu, poor, 4)]
    assert len(centers) > 1
    kls = [centers_kl(library, center) for center in centers]
    assert kls == sorted(kls, reverse=True)
    assert len(set(kls)) == len(kls)
    assert [center.measured_kl for center in centers] == pytest.approx(kls, rel=1e-5)
    assert all(menu.limits.allow(center.prediction) for center in centers[1:])


def centers_kl(library: Library, center: Choice) -> float:
    [(_, values)] = measure(library, [center.blocks])
    return float(values["kl"].mean())


def test_one_round_looks_no_further(library: Library, menu: Menu, poor: Choice) -> None:
    assert further(library, menu, poor, 1) == []


def test_it_ends_where_nothing_nearer_is_found(
    library: Library, menu: Menu, poor: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def trial_of_worse(_: Library, choices: list[Choice]) -> list[Choice]:
        asked.append(len(choices))
        return [poor]

    monkeypatch.setattr("puzzle.rounds.trial", trial_of_worse)
    assert further(library, menu, poor, 5) == []
    assert len(asked) == 2  # as far as it may reach, then where the best was found
