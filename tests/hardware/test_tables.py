"""Measured tables as a source: interpolation, what lies beyond, and where each number is from."""

import math
import warnings
from dataclasses import replace

import pytest

from puzzle.blocks.variant import Block
from puzzle.budget import Budget, Workload, load_budget
from puzzle.errors import PuzzleError
from puzzle.hardware.devices import device
from puzzle.hardware.interpolate import lookup
from puzzle.hardware.kernels import Roofline
from puzzle.hardware.modeled import Modeled
from puzzle.hardware.price import price
from puzzle.hardware.published import model
from puzzle.hardware.roofline import block_cost as static_cost
from puzzle.hardware.source import Step, Timed
from puzzle.hardware.tables import (
    COLUMNS,
    Measured,
    Timing,
    open_source,
    read_table,
    shape_key,
    write_table,
)
from puzzle.hardware.throughput import reference_of

SHAPE, BLOCKS = model("llama-3.1-8b")
WORK = Workload(prompt_tokens=100, new_tokens=10, batches=(1, 4))
BUDGET = Budget(name="mine", hardware="h100-sxm", workload=WORK)
HALF = "gqa8+noop"
HALVES = (HALF, "noop+ffn14336")


def timing(half, phase, batch, length, seconds, **changes):
    line = Timing(
        "mine",
        shape_key(SHAPE),
        half,
        phase,
        batch,
        length,
        "bfloat16",
        "bfloat16",
        seconds,
        0.01,
        "torch",
    )
    return replace(line, **changes)


TIMINGS = [
    timing(HALF, phase, batch, length, batch * length * 1e-6)
    for phase, lengths in (("prefill", (100,)), ("decode", (101, 110)))
    for length in lengths
    for batch in (1, 4)
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.csv"
    write_table(path, TIMINGS)
    return path


@pytest.fixture
def modeled():
    return Modeled(Roofline(device("h100-sxm")), SHAPE, WORK)


@pytest.mark.parametrize(
    ("size", "seconds", "beyond"),
    [(1, 2.0, False), (4, 8.0, False), (2, 4.0, False), (8, 16.0, True), (0.5, 2.0, True)],
)
def test_between_sizes_it_is_a_power_law_and_beyond_it_says_so(size, seconds, beyond):
    found = lookup({1: 2.0, 4: 8.0}, size)
    assert found == (pytest.approx(seconds), beyond)


def test_beyond_a_table_time_neither_falls_nor_explodes():
    assert lookup({1: 2.0, 4: 1.0}, 16) == (1.0, True)
    assert lookup({1: 1.0, 2: 16.0}, 4) == (32.0, True)  # at most linear in the batch
    assert lookup({1: {1: 1.0}, 2: {1: 16.0}}, 4, 1) == (64.0, True)  # quadratic in the length
    assert lookup({3: 2.0}, 3) == (2.0, False)
    assert lookup({3: 2.0}, 12) == (8.0, True)  # as four passes: nothing tells how it grows
    assert lookup({3: 2.0}, 1) == (2.0, True)


def test_coordinates_nest_and_need_not_be_complete():
    ragged = {1: {1: 1.0, 4: 4.0}, 100: {1: 10.0}}
    assert lookup(ragged, 10, 1) == (pytest.approx(math.sqrt(10)), False)
    seconds, beyond = lookup(ragged, 10, 4)
    assert beyond
    assert seconds > 4


def test_a_table_survives_writing_and_reading(table):
    assert read_table(table) == TIMINGS
    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_measured_halves_come_from_the_table_and_others_from_the_roofline(table, modeled):
    source = Measured.of(table, modeled)
    half, step = Block.parse(HALF), Step(2, 0, 100, 10)
    found = source.half(half, step)
    assert found.sources == {"mine.csv"}
    assert found.seconds == pytest.approx(2 * 105.5e-6, rel=1e-3)  # of the mean context
    mixed = source.half(half, Step(2, 2, 100, 10))
    assert mixed.seconds == pytest.approx(found.seconds + 2 * 100e-6)
    assert source.half(half, Step(8, 0, 100, 10)).sources == {"beyond mine.csv"}
    other = Block.parse("noop+ffn256")
    assert source.half(other, step) == modeled.half(other, step)
    assert source.outside(step) == modeled.outside(step)


def test_the_fastest_kernels_count(table, modeled):
    write_table(table, [*TIMINGS, timing(HALF, "prefill", 1, 100, 1e-9, kernels="triton")])
    source = Measured.of(table, modeled)
    assert source.half(Block.parse(HALF), Step(0, 1, 100, 10)).seconds == pytest.approx(1e-9)


def test_prices_say_where_they_come_from_and_warn_beyond(table, modeled):
    space = [[Block.parse("gqa8+noop"), Block.parse("gqa8+ffn256")]]
    with pytest.warns(UserWarning, match=r"mine\.csv does not time all of 2 blocks, gqa8\+ffn256"):
        prices = price(SHAPE, "llama", space, BUDGET, Measured.of(table, modeled))
    sources = {(row["batch"], row["block"]): row["source"] for row in prices.rows()}
    assert sources[1, "gqa8+noop"] == "mine.csv"
    assert sources[4, "gqa8+ffn256"] == "mine.csv, roofline"
    assert sources[1, "outside"] == "roofline"
    assert prices.blocks[4][space[0][0]].prefill_s == pytest.approx(400e-6)
    wider = BUDGET.model_copy(update={"workload": WORK.model_copy(update={"batches": (1, 64)})})
    with (
        pytest.warns(UserWarning, match=r"2 of 6 prices lie beyond mine\.csv's measurements"),
        pytest.warns(UserWarning, match="the data sheet prices the rest"),
    ):
        price(SHAPE, "llama", space, wider, Measured.of(table, modeled))


def test_without_a_source_prices_are_the_static_rooflines():
    budget = load_budget("h100-1gpu")
    block = Block.parse("gqa2+ffn4096")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prices = price(SHAPE, "llama", [[block]], budget)
    for batch, costs in prices.blocks.items():
        setting = {"workload": budget.workload, "batch": batch, "device": budget.device}
        assert costs[block] == static_cost(SHAPE, block, **setting)
    assert {row["source"] for row in prices.rows()} == {"roofline of static batches"}


def test_on_eight_gpus_prices_are_of_one_of_them():
    budget = load_budget("h100-8gpu")
    shape, blocks = model("llama-3.1-405b")
    prices = price(shape, "llama", [[blocks[0]]], budget)
    parent = reference_of(shape, budget)
    assert parent.gpus == 8
    total = prices.total(blocks, parent.batch)
    assert parent.memory_bytes == total.memory_bytes < budget.device.usable_bytes
    assert total.params == 405_853_388_800
    assert 8 * total.weight_bytes == pytest.approx(410e9, rel=0.01)
    per_request = 8 * total.kv_bytes / (8 * parent.batch)
    assert per_request == 126 * 2 * 8 * 128 * 256
    assert parent.tokens_per_s == pytest.approx(parent.batch * 56 / total.total_s)


def test_the_table_that_is_shipped_prices_as_its_path_does():
    work = Workload(prompt_tokens=128, new_tokens=128, batches=(16,))
    source = open_source("measured", SHAPE, work, "h200-sxm")
    step = Step(sequences=16, prompts=0, prompt_tokens=255, new_tokens=1)
    layer = sum((source.half(Block.parse(half), step) for half in HALVES), Timed())
    assert layer.sources == {"h200-sxm.csv"}
    # within the roofline's error of reading a layer's weights at the data sheet's bandwidth
    read_s = 2 * SHAPE.block_params(BLOCKS[0]) / 4.8e12
    assert read_s < layer.seconds < 2 * read_s
    with pytest.raises(PuzzleError, match="are shipped of h200-sxm, not of a100-sxm; run puzzle"):
        open_source("measured", SHAPE, work, "a100-sxm")


def test_mistakes_are_sentences(table, tmp_path):
    with pytest.raises(PuzzleError, match=r"times 4096-32x128-v128256 bfloat16 bfloat16, not 8192"):
        open_source(str(table), model("llama-3.1-70b")[0], WORK, "h100-sxm")
    mixed = tmp_path / "mixed.csv"
    write_table(mixed, [*TIMINGS, replace(TIMINGS[0], device="yours")])
    with pytest.raises(PuzzleError, match=r"mixed\.csv mixes mine and yours"):
        open_source(str(mixed), SHAPE, WORK, "h100-sxm")
    for column, worth in (("seconds", math.nan), ("batch", 0), ("length", 0)):
        write_table(mixed, [replace(TIMINGS[0], **{column: worth})])
        with pytest.raises(PuzzleError, match=rf"mixed.csv line 2: {column} is {worth}, expected"):
            read_table(mixed)
    mixed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PuzzleError, match=r"mixed.csv is no table: it is not text"):
        read_table(mixed)
    with pytest.raises(PuzzleError, match="was measured on one GPU"):
        open_source(str(table), SHAPE, WORK, "h100-sxm", gpus=2)
    with pytest.raises(PuzzleError, match="costs 'nowhere' is not a file; take roofline, public"):
        open_source("nowhere", SHAPE, WORK, "h100-sxm")
    table.write_text(table.read_text().replace(str(TIMINGS[0].seconds), "fast"))
    with pytest.raises(PuzzleError, match=r"mine\.csv line 2: could not convert"):
        read_table(table)
    table.write_text("half,seconds\n")
    with pytest.raises(PuzzleError, match="has no column device"):
        read_table(table)
    with pytest.raises(PuzzleError, match="No such file"):
        read_table(tmp_path / "none.csv")
