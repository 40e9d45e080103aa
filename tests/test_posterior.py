"""Posterior: a closed form against sampling, and what measured children teach of others."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from puzzle.blocks.variant import Block
from puzzle.hardware.throughput import Prediction
from puzzle.menu import Choice, Losses
from puzzle.posterior import NOISE, OWN, SLOPE, posterior
from puzzle.trial import measured

A, B, C = map(Block.parse, ("gqa4+ffn1024", "gqa2+ffn768", "noop+ffn512"))
LOSSES: Losses = [{A: 0.0, B: -0.2, C: 0.3}] * 8
NONE = Prediction(**{each.name: 0 for each in fields(Prediction)})
CENTER = Choice((A,) * 8, 0.0, NONE, {}, {}, measured_kl=0.5)


def children(true: Losses, count: int, seed: int = 0, *, layers: int = 8) -> list[Choice]:
    """Random children of up to three swaps in the first layers, with the sum of their losses."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        blocks = list(CENTER.blocks)
        for layer in draw.choice(layers, size=draw.integers(1, 4), replace=False):
            blocks[layer] = (B, C)[draw.integers(2)]
        loss = sum(losses[block] for losses, block in zip(true, blocks))
        found.append(replace(CENTER, blocks=tuple(blocks), measured_kl=0.5 + loss))
    return found


def scaled(gain: float, loss: float) -> Losses:
    return [{b: v * (gain if v < 0 else loss) for b, v in each.items()} for each in LOSSES]


def test_it_is_the_least_squares_solution_of_the_model() -> None:
    """The same minimum found another way: residuals and priors as one least squares problem."""
    tried = children(scaled(0.4, 0.8), 6)
    swaps = [(layer, block) for layer in range(8) for block in (B, C)]
    made = np.array([[child.blocks[layer] == block for layer, block in swaps] for child in tried])
    scores = np.array([LOSSES[layer][block] for layer, block in swaps])
    features = np.column_stack([made @ np.minimum(scores, 0), made @ np.maximum(scores, 0), made])
    noise = NOISE * 0.5 * np.sqrt(made.sum(axis=1))
    prior = np.array([SLOPE, SLOPE, *(OWN[0] * abs(scores) + OWN[1] * 0.5)])
    mean = np.array([1, 1, *np.zeros(len(swaps))])
    changes = np.array([measured(child) - 0.5 for child in tried])
    left = np.vstack([features / noise[:, None], np.diag(1 / prior)])
    theta = np.linalg.lstsq(left, np.concatenate([changes / noise, mean / prior]))[0]
    slopes = np.where(scores < 0, theta[0], theta[1])
    assert theta[:2].min() > 0
    found = posterior(LOSSES, CENTER, tried)
    assert [found[layer][block] for layer, block in swaps] == pytest.approx(
        slopes * scores + theta[2:], abs=1e-8
    )


def test_what_was_foretold_changes_nothing() -> None:
    assert posterior(LOSSES, CENTER, []) == LOSSES
    for layer, same in zip(posterior(LOSSES, CENTER, children(LOSSES, 5)), LOSSES):
        assert layer == pytest.approx(same, abs=1e-9)


def test_slopes_carry_over_to_blocks_that_were_not_tried() -> None:
    true = scaled(0.3, 1.4)
    found = posterior(LOSSES, CENTER, children(true, 40, layers=6))
    for layer in (6, 7):
        assert found[layer] == pytest.approx(true[layer], abs=0.03)


def test_gains_that_turn_out_losses_are_no_gains_elsewhere_and_no_losses() -> None:
    found = posterior(LOSSES, CENTER, children(scaled(-2.0, 1.0), 40, layers=6))
    assert [found[layer][B] for layer in (6, 7)] == [0, 0]
    assert all(each[A] == 0 for each in found)


def test_a_deviation_stays_with_its_block() -> None:
    true = [dict(each) for each in LOSSES]
    true[2][B] = 0.1
    found = posterior(LOSSES, CENTER, children(true, 60))
    assert found[2][B] == pytest.approx(0.1, abs=0.02)
    assert all(found[layer][B] == pytest.approx(-0.2, abs=0.02) for layer in range(8) if layer != 2)
