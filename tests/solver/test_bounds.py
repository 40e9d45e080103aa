"""Bounds are bounds: of the relaxation, of its columns, and of a search that dropped states."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from random_problems import random_problem

from puzzle.solver import Problem, ProblemError
from puzzle.solver.auto import bounded, enumerated
from puzzle.solver.dynamic import Search
from puzzle.solver.exhaustive import answers, best
from puzzle.solver.milp import breaks
from puzzle.solver.polish import polished
from puzzle.solver.presolve import undominated
from puzzle.solver.prices import Prices
from puzzle.solver.program import Program, program_of
from puzzle.solver.relax import relax
from puzzle.solver.verify import totals


def programs(first: int, last: int) -> list[tuple[int, Program]]:
    found = []
    for seed in range(first, last):
        try:
            found.append((seed, program_of(random_problem(seed))))
        except ProblemError:
            continue
    return found


def test_no_answer_is_below_the_bound_of_the_columns_it_holds() -> None:
    for seed, program in programs(0, 40):
        problem, relaxation = random_problem(seed), relax(program)
        for picks in answers(problem):
            found = totals(problem, picks)
            if found.broken:
                continue
            assert not relaxation.infeasible, seed
            options_N = program.start_N[: program.options]
            held_N = program.pick_N[: program.options] == np.array(picks)[options_N]
            excess = relaxation.excess_N[: program.options][held_N].max(initial=0.0)
            assert found.loss >= relaxation.bound + excess - 1e-9, seed


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_that_dropped_states_says_how_good_they_could_have_been(beam: int) -> None:
    for seed, program in programs(0, 50):
        if program.max_names is not None:
            continue
        start, (loss, _) = bounded(program), best(random_problem(seed))
        if start.relaxation is None:
            continue
        search = Search(start.program, start.relaxation.multiplier_R[None], math.inf)
        found = search.run(beam, time.perf_counter() + 60)
        assert found.loss >= loss - 1e-9, seed
        assert min(found.loss, found.lost) <= loss + 1e-9, seed


def test_a_beam_too_small_is_no_proof() -> None:
    rng = np.random.default_rng(0)
    groups, options = 40, 20

    cost = {f"c{r}": list(rng.integers(1, 10**6, (groups, options))) for r in range(4)}
    loss = [
        -sum(table[g] for table in cost.values()) * rng.uniform(0.9, 1.1, options)
        for g in range(groups)
    ]
    limit = {name: int(sum(group.mean() for group in table)) for name, table in cost.items()}
    start = bounded(program_of(Problem(loss, cost, limit)))
    assert start.relaxation is not None
    answer = enumerated(start.program, start.relaxation, deadline=math.inf, gap=0.0, largest=50)
    assert answer.proof == "none"
    assert start.bound <= answer.bound
    if answer.columns is not None:
        assert answer.bound < start.program.loss_N[answer.columns].sum()


def test_learned_multipliers_bound_what_is_left_as_its_own_relaxation_does() -> None:
    rng = np.random.default_rng(5)
    groups, options, done = 12, 5, 4
    cost = {f"c{r}": list(rng.integers(1, 10**6, (groups, options))) for r in range(3)}
    loss = list(rng.exponential(1.0, (groups, options)))
    limit = {name: int(sum(group.mean() for group in table)) for name, table in cost.items()}
    program = program_of(Problem(loss, cost, limit))
    later_N = np.flatnonzero(program.start_N >= done)
    for _ in range(10):
        chosen_N = program.first_G[:done] + rng.integers(0, options, done)
        rest_R = program.limit_R - program.cost_RN[:, chosen_N].sum(axis=1)
        tail = replace(
            program.keep(later_N),
            groups=groups - done,
            start_N=program.start_N[later_N] - done,
            stop_N=program.stop_N[later_N] - done,
            limit_R=rest_R,
        )
        prices = Prices(program, np.zeros((1, 3)))
        prices.learn(rest_R, done)
        bound_SK = prices.bounds(np.zeros(1), rest_R[None], done)
        assert bound_SK[0, 1] == pytest.approx(relax(tail).bound, rel=1e-6)


def test_dominated_columns_are_not_needed() -> None:
    for seed, program in programs(0, 40):
        kept_N = undominated(program)
        start = bounded(program.keep(kept_N))
        loss = best(random_problem(seed))[0]
        if math.isfinite(loss):
            assert start.bound <= loss + 1e-9, seed


def test_polish_only_improves_and_keeps_every_limit() -> None:
    rng = np.random.default_rng(3)
    cost = {f"c{r}": list(rng.integers(1, 10**6, (12, 6))) for r in range(2)}
    loss = [-(cost["c0"][g] + cost["c1"][g]) / 1e6 for g in range(12)]
    limit = {name: int(sum(group.mean() for group in table)) for name, table in cost.items()}
    program = program_of(Problem(loss, cost, limit))
    cheapest_N = program.first_G[:-1] + np.array(
        [int(np.argmin(cost["c0"][g] + cost["c1"][g])) for g in range(12)]
    )
    price_R = relax(program).multiplier_R
    better_N = polished(program, price_R, cheapest_N, deadline=math.inf, failures=50)
    assert not breaks(program, better_N)
    least = relax(program).bound
    assert program.loss_N[better_N].sum() <= least + 0.01 * abs(least)
    again_N = polished(program, price_R, better_N, deadline=math.inf, failures=5)
    assert program.loss_N[again_N].sum() <= program.loss_N[better_N].sum()
