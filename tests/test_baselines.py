"""The baselines against brute force on a tiny menu, and the limits that all of them keep."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from puzzle.baselines.extremes import max_parameters, noop_only
from puzzle.baselines.greedy import greedy, random_child
from puzzle.baselines.influence import block_influence, influence, traced_influence
from puzzle.baselines.uniform import uniform
from puzzle.blocks.variant import NOTHING, Block
from puzzle.budget import Budget
from puzzle.choose import choose
from puzzle.errors import InfeasibleError
from puzzle.hardware.price import price
from puzzle.hardware.throughput import reference_of
from puzzle.menu import Choice, Menu
from puzzle.result import Result
from puzzle.shape import Shape

LAYERS = 4
SHAPE = Shape.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 1000,
    }
)
OWN, *OTHERS = BLOCKS = [
    Block.parse(text)
    for text in (
        *("gqa4+ffn1024", "gqa2+ffn768", "gqa4+noop"),
        *("noop+ffn1024", "gqa1+ffn256", "noop+noop"),
    )
]
INFLUENCES = [0.9, 0.1, 0.2, 0.8]
BASELINES: dict[str, Callable[[Menu], list[Choice]]] = {
    "uniform": uniform,
    "greedy": greedy,
    "random": lambda menu: random_child(menu, seed=3),
    "max parameters": max_parameters,
    "noop only": noop_only,
    "block influence": lambda menu: block_influence(menu, INFLUENCES),
}
ROWS = [
    {"targets": {"throughput": "1.3x"}},
    {"limits": {"params": "0.6x"}},
    {"limits": {"memory": "0.6x", "tpot": "0.8x"}, "targets": {"throughput": "1.1x"}},
]


def menu(seed: int = 0, **rows: object) -> Menu:
    """Random losses for four layers of six blocks, the parent's own costing nothing."""
    draw = random.Random(seed)
    losses = [{block: draw.random() * (block != OWN) for block in BLOCKS} for _ in range(LAYERS)]
    budget = Budget.model_validate(
        {
            "name": "test",
            "hardware": "h100-sxm",
            "workload": {"prompt_tokens": 64, "new_tokens": 32, "batches": [1, 8, 64]},
            **rows,
        }
    )
    prices = price(SHAPE, "llama", [BLOCKS] * LAYERS, budget)
    return Menu(losses, prices, budget, reference_of(SHAPE, budget))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("seed", range(2))
def test_every_baseline_keeps_the_limits_and_is_no_better_than_the_program(
    name: str, rows: dict[str, object], seed: int
) -> None:
    asked = menu(seed, **rows)
    found = BASELINES[name](asked)
    assert found
    assert [choice.loss for choice in found] == sorted(choice.loss for choice in found)
    for choice in found:
        assert asked.limits.allow(choice.prediction)
        assert choice.prediction == asked.serve(choice.blocks, choice.prediction.batch)
        losses = [asked.losses[layer][block] for layer, block in enumerate(choice.blocks)]
        assert choice.loss == pytest.approx(sum(losses))
        assert choice.loss >= choose(asked)[0].loss - 1e-9


@pytest.mark.parametrize("name", BASELINES)
def test_a_loose_budget_keeps_the_parent_but_for_the_random_child(name: str) -> None:
    found = BASELINES[name](menu(limits={"params": "1x"}))[0]
    assert (found.blocks == (OWN,) * LAYERS) == (name != "random")


def test_most_parameters_and_only_removals_by_brute_force() -> None:
    asked = menu(1, targets={"throughput": "1.3x"})

    def kept(options: list[Block]) -> list[tuple[Block, ...]]:
        return [
            blocks
            for blocks in itertools.product(options, repeat=LAYERS)
            if any(asked.limits.allow(asked.serve(blocks, batch)) for batch in asked.prices.blocks)
        ]

    most = max(SHAPE.model_params(blocks) for blocks in kept(BLOCKS))
    assert max_parameters(asked)[0].prediction.params == most
    assert max_parameters(asked)[0].loss > choose(asked)[0].loss
    halves = [OWN, *(Block.parse(text) for text in ("gqa4+noop", "noop+ffn1024", "noop+noop"))]
    best = min(
        sum(asked.losses[layer][block] for layer, block in enumerate(blocks))
        for blocks in kept(halves)
    )
    assert noop_only(asked)[0].loss == pytest.approx(best)


def test_layers_go_in_the_order_of_their_influence() -> None:
    asked = menu(limits={"params": "0.6x"})
    assert block_influence(asked, INFLUENCES)[0].blocks == (OWN, NOTHING, NOTHING, OWN)
    losses = [dict(layer) for layer in asked.losses]
    del losses[1][NOTHING]
    stays = replace(asked, losses=losses)
    assert block_influence(stays, INFLUENCES)[0].blocks == (OWN, OWN, NOTHING, NOTHING)


def test_a_run_removed_as_one_counts_as_one() -> None:
    asked = replace(menu(limits={"params": "0.6x"}), removals={(1, 3): 0.125})
    found = block_influence(asked, INFLUENCES)[0]
    assert found.removed == ((1, 3),)
    assert found.loss == 0.125


def test_greedy_shares_the_budget_and_hands_on_what_is_saved() -> None:
    """Shares of a whole budget for two layers in four: the first to choose affords nothing."""
    losses = [{OWN: 0.0, NOTHING: float(layer + 1)} for layer in range(LAYERS)]
    asked = replace(menu(limits={"params": "0.65x"}), losses=losses)
    found = greedy(asked)[0]
    # layer 3 chooses first and has half a layer, 2 two thirds, 1 a whole one, 0 what is left
    assert found.blocks == (OWN, OWN, NOTHING, NOTHING)
    assert found.loss == 7.0
    assert choose(asked)[0].loss == 3.0


def test_random_children_follow_the_seed() -> None:
    asked = menu(limits={"params": "0.6x"})
    first, again, other = (random_child(asked, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({choice.blocks for choice in first}) > 8


def test_nothing_is_found_where_nothing_fits() -> None:
    asked = menu(targets={"throughput": "90x"})
    for name in ("uniform", "greedy", "random", "block influence"):
        assert BASELINES[name](asked) == []
    for name in ("max parameters", "noop only"):
        with pytest.raises(InfeasibleError):
            BASELINES[name](asked)


def test_influence_is_zero_for_the_same_and_two_for_the_opposite_stream() -> None:
    stream = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert influence(stream, 3 * stream) == pytest.approx(0, abs=1e-6)
    assert influence(stream, -stream) == pytest.approx(2, abs=1e-6)
    turned = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    assert influence(*turned) == pytest.approx(0.5)


def test_influences_of_a_run_are_those_of_its_trace(result: Result) -> None:
    layers = len(result.architecture.blocks)
    found = traced_influence(result.run, layers)
    assert len(found) == layers
    assert all(0 < each < 1 for each in found)
