"""The choice against brute force, its limits, and its sentence when nothing fits."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from puzzle.baselines.uniform import uniform
from puzzle.blocks.variant import Block
from puzzle.budget import Budget
from puzzle.choose import choose
from puzzle.errors import InfeasibleError
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.menu import Choice, Menu, Region
from puzzle.shape import Shape
from puzzle.swap import Swap, removal, removed_runs
from puzzle.units import show

SHAPE = Shape.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 1000,
    }
)
BLOCKS = [
    Block.parse(text)
    for text in ("gqa4+ffn1024", "gqa2+ffn768", "gqa4+noop", "noop+ffn512", "gqa1+ffn256")
]


def menu(seed: int = 0, **rows: object) -> Menu:
    """Random losses for four layers of five blocks, the parent's own costing nothing."""
    draw = random.Random(seed)
    losses = [{block: draw.random() * (block != BLOCKS[0]) for block in BLOCKS} for _ in range(4)]
    budget = Budget.model_validate(
        {
            "name": "test",
            "hardware": "h100-sxm",
            "workload": {"prompt_tokens": 64, "new_tokens": 32, "batches": [1, 8, 64]},
            **rows,
        }
    )
    prices = price(SHAPE, "llama", [BLOCKS] * 4, budget)
    return Menu(losses, prices, budget, reference_of(SHAPE, budget))


def brute_force(menu: Menu) -> float:
    """The least loss over every architecture and batch that keeps the limits."""
    kept = (
        sum(options[block] for options, block in zip(menu.losses, blocks))
        for blocks in itertools.product(BLOCKS, repeat=4)
        if any(menu.limits.allow(menu.serve(blocks, batch)) for batch in menu.prices.blocks)
    )
    return min(kept)


@pytest.mark.parametrize(
    "rows",
    [
        {"targets": {"throughput": "1.3x"}},
        {"targets": {"throughput": "1.2x"}, "limits": {"memory": "0.6x"}},
        {"limits": {"params": "0.7x"}},
        {"limits": {"ttft": "0.9x", "tpot": "0.8x"}},
        {"limits": {"tpot": "60 us", "memory": "3 MiB"}},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_brute_forces_and_keeps_every_limit(
    rows: dict[str, object], seed: int
) -> None:
    asked = menu(seed, **rows)
    chosen = choose(asked)[0]
    assert chosen.loss == pytest.approx(brute_force(asked), abs=1e-9)
    assert asked.limits.allow(chosen.prediction)
    assert chosen.prediction == asked.serve(chosen.blocks, chosen.prediction.batch)
    assert chosen.proof["status"] == "optimal"


def test_a_loose_budget_keeps_the_parent() -> None:
    chosen = choose(menu(limits={"params": "1x"}))[0]
    assert chosen.blocks == (BLOCKS[0],) * 4
    assert chosen.loss == 0


def test_an_impossible_target_says_what_the_cheapest_child_reaches() -> None:
    asked = menu(targets={"throughput": "40x"})
    with pytest.raises(InfeasibleError) as error:
        choose(asked)
    assert error.value.exit_code == 3
    fastest = max(
        asked.serve(blocks, batch).tokens_per_s
        for blocks in itertools.product(BLOCKS, repeat=4)
        for batch in asked.prices.blocks
    )
    wanted = asked.limits.stated()["throughput"]
    assert f"throughput of at least {show(wanted, 'tok/s')}" in str(error.value)
    assert f"cheapest possible child has {show(fastest, 'tok/s')}" in str(error.value)


def test_limits_that_conflict_only_together_say_so() -> None:
    """Throughput needs the large batch, memory holds the small one only."""
    throughput, memory = {"targets": {"throughput": "1x"}}, {"limits": {"memory": "0.15x"}}
    choose(menu(**throughput))
    choose(menu(**memory))
    with pytest.raises(InfeasibleError, match="but not all together"):
        choose(menu(**throughput, **memory))


def test_the_uniform_child_is_the_best_single_block_that_keeps_the_budget() -> None:
    asked = menu(targets={"throughput": "1.2x"})
    plain = uniform(asked)[0]
    assert len(set(plain.blocks)) == 1
    assert asked.limits.allow(plain.prediction)
    best = min(
        sum(options[block] for options in asked.losses)
        for block in BLOCKS
        if any(asked.limits.allow(asked.serve([block] * 4, b)) for b in asked.prices.blocks)
    )
    assert plain.loss == pytest.approx(best)
    assert choose(asked)[0].loss <= plain.loss


def test_without_a_uniform_child_there_is_none() -> None:
    assert uniform(menu(targets={"throughput": "40x"})) == []


def test_finalists_are_in_order_differ_and_all_keep_the_budget() -> None:
    asked = menu(targets={"throughput": "1.2x"})
    finalists = choose(asked, 5)
    losses = [choice.loss for choice in finalists]
    assert len(finalists) == 5
    assert losses == sorted(losses)
    for one, other in itertools.combinations(finalists, 2):
        assert sum(a == b for a, b in zip(one.blocks, other.blocks)) <= 3  # .8 of four layers
    assert all(asked.limits.allow(choice.prediction) for choice in finalists)


def test_a_budget_of_several_gpus_is_one_of_its_children_too() -> None:
    eight = menu(0, limits={"params": "0.5x"})
    budget = eight.budget.model_copy(update={"gpus": 8})
    assert choose(replace(eight, budget=budget))[0].prediction.gpus == 8


def test_there_may_be_fewer_finalists_than_asked_for() -> None:
    few = choose(menu(limits={"params": "0.35x"}), 100)
    assert 1 < len(few) < 50


NOTHING = Block.parse("noop+noop")


def menu_with_removals(seed: int, **rows: object) -> Menu:
    """The same, where every layer may be empty and runs of up to three have losses of their own."""
    asked, draw = menu(seed, **rows), random.Random(seed)
    losses = [{**options, NOTHING: draw.random()} for options in asked.losses]
    runs = [(start, stop) for start in range(4) for stop in range(start + 2, min(start + 4, 5))]
    removals = {run: draw.random() * (run[1] - run[0]) for run in runs}
    prices = price(SHAPE, "llama", [[*BLOCKS, NOTHING]] * 4, asked.budget)
    return Menu(losses, prices, asked.budget, asked.parent, removals)


def judged(menu: Menu, blocks: Sequence[Block]) -> float:
    """The loss of a child whose runs of empty layers count jointly; infinite for one too long."""
    runs = list(removed_runs(blocks))
    inside = {layer for run in runs for layer in range(*run)}
    singles = [menu.losses[layer][blocks[layer]] for layer in range(4) if layer not in inside]
    return sum(singles) + sum(menu.removals.get(run, math.inf) for run in runs)


def allowed(menu: Menu, blocks: Sequence[Block]) -> bool:
    return any(menu.limits.allow(menu.serve(blocks, batch)) for batch in menu.prices.blocks)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("params", ["0.75x", "0.5x", "0.35x"])
def test_runs_are_removed_at_their_joint_loss_and_never_piecemeal(seed: int, params: str) -> None:
    asked = menu_with_removals(seed, limits={"params": params})
    found = choose(asked, 3)
    for choice in found:
        assert choice.loss == pytest.approx(judged(asked, choice.blocks))
        assert sorted(choice.removed) == sorted(removed_runs(choice.blocks))
        assert Choice.from_record(json.loads(json.dumps(choice.as_record()))) == choice
    children = itertools.product([*BLOCKS, NOTHING], repeat=4)
    best = min(judged(asked, child) for child in children if allowed(asked, child))
    assert found[0].loss == pytest.approx(best)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_inside_a_region_few_layers_change(radius: int) -> None:
    asked = menu_with_removals(0, limits={"params": "0.5x"})
    center = choose(asked)[0].blocks
    around = {
        layer: {
            block: (loss if block != center[layer] else 0.0) - 0.5 for block, loss in each.items()
        }
        for layer, each in enumerate(asked.losses)
    }
    near = replace(asked, losses=list(around.values()), region=Region(center, radius))
    found = choose(near)[0]

    def distance(child: Sequence[Block]) -> int:
        return sum(block != kept for block, kept in zip(child, center))

    children = itertools.product([*BLOCKS, NOTHING], repeat=4)
    inside = [c for c in children if allowed(near, c) and distance(c) <= radius]
    assert distance(found.blocks) <= radius
    assert found.loss == pytest.approx(min(judged(near, child) for child in inside))


@pytest.mark.parametrize("radius", [1, 2, 5, 12])
def test_a_small_region_of_many_layers_has_several_children(radius: int) -> None:
    """A fifth of forty layers is more than two children within so few changes can differ in."""
    few, draw = menu(0, limits={"params": "0.9x"}), random.Random(0)
    center = (BLOCKS[1],) * 40
    losses = [{block: draw.random() * (block != BLOCKS[1]) for block in BLOCKS} for _ in center]
    prices = price(SHAPE, "llama", [list(layer) for layer in losses], few.budget)
    whole = replace(few.parent, params=50 * few.parent.params)
    asked = Menu(losses, prices, few.budget, whole, region=Region(center, radius))
    found = [choice.blocks for choice in choose(asked, 9)]
    assert len(found) == 9
    assert found[0] == center
    for one, other in itertools.combinations(found, 2):
        apart = sum(mine != its for mine, its in zip(one, other))
        assert max(1, radius // 2) <= apart <= 2 * radius


def test_exact_losses_take_the_place_of_others() -> None:
    asked = menu_with_removals(0, limits={"params": "0.5x"})
    single, run = Swap(1, (BLOCKS[1],)), removal(0, 2)
    known = asked.with_losses({single: 5.0, run: 7.0})
    assert known.losses[1][BLOCKS[1]] == 5.0
    assert known.removals[0, 2] == 7.0
    assert known.digest() != asked.digest()
    untouched = [
        (layer, block) for layer in range(4) for block in BLOCKS if (layer, block) != (1, BLOCKS[1])
    ]
    assert all(
        known.losses[layer][block] == asked.losses[layer][block] for layer, block in untouched
    )
